"""The former name of `models.packed.PackedSequences`."""

from sr1_jax.models.packed import PackedSequences as Segments

__all__ = ["Segments"]

"""Texts to vectors on devices, in batches of a few fixed shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.models.encoder_folder import TextEncoder
from sr1_jax.sharding import MESH_AXES

# Finer than powers of two where passages mostly are: the time of a batch follows its length.
_LENGTHS = (16, 32, 64, 96, 128, 160, 192, 256, 384, 512, 1024, 2048, 4096, 8192)


def lengths_up_to(longest: int, *, least: int = _LENGTHS[0]) -> tuple[int, ...]:
    """Lengths that sequences are padded to, increasing, from `least` to `longest` tokens."""
    return (*(length for length in _LENGTHS if least <= length < longest), longest)


def passage_text(title: str, text: str) -> str:
    """What an encoder reads of a passage: the title, where there is one, a space and the text.

    Search-R1's index has the title in quotation marks and a line break there; to a BERT tokenizer
    that is white space and two tokens more.
    """
    return f"{title} {text}".strip()


class Embedded(NamedTuple):
    """Vectors of texts.

    Attributes:
        vector_ND: float32.
        cut: of how many texts the end was left out, because they were too long.
    """

    vector_ND: np.ndarray
    cut: int


def shared_evenly(batches: Sequence[int], mesh: Mesh) -> list[int]:
    """Sizes of batches, rounded up to what the devices of a mesh share evenly; increasing."""
    return sorted({-(-batch // mesh.size) * mesh.size for batch in batches})


class Embedder:
    """An encoder on the devices of a mesh.

    Every device has all weights and a share of each batch, so that no program waits for another
    device. Compiled are as many programs as there are pairs of a batch and a length, each on its
    first use.

    Args:
        encoder: as it was read.
        mesh: its devices share each batch.
        batches: sizes of batches, increasing; rounded up to what the devices share evenly.
    """

    def __init__(self, encoder: TextEncoder, mesh: Mesh, batches: Sequence[int]):
        self.path, self.recipe, self.width = encoder.path, encoder.recipe, encoder.width
        self.fingerprint = encoder.fingerprint
        # Truncation counts what it cuts; encoding is safe in several threads at once.
        self._tokenizer = encoder.tokenizer
        self._tokenizer.enable_truncation(self.recipe.max_tokens)
        self._lengths = lengths_up_to(self.recipe.max_tokens)
        self._batches = shared_evenly(batches, mesh)
        replicated = NamedSharding(mesh, PartitionSpec())
        self._rows = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        self._params = jax.device_put(encoder.params, replicated)
        self._embed = jax.jit(encoder.embed, out_shardings=self._rows)

    def queries(self, texts: Sequence[str]) -> Embedded:
        """Vectors of queries, behind the prefix of queries."""
        return self.embed([self.recipe.query_prefix + text for text in texts])

    def passages(self, passages: Sequence[tuple[str, str]]) -> Embedded:
        """Vectors of passages (title, text), behind the prefix of passages.

        See `passage_text`.
        """
        prefix = self.recipe.passage_prefix
        return self.embed([prefix + passage_text(title, text) for title, text in passages])

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Vectors of texts as they are."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = [each.ids for each in encoded]
        vector_ND = np.zeros((len(ids), self.width), np.float32)
        # All are started before the first is waited for.
        started = [(rows, self._start([ids[row] for row in rows])) for rows in self._split(ids)]
        for rows, batch in started:
            vector_ND[rows] = np.asarray(batch)[: len(rows)]
        return Embedded(vector_ND, sum(bool(each.overflowing) for each in encoded))

    def _split(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Texts that share a batch: those of like length."""
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        most = self._batches[-1]
        for first in range(0, len(order), most):
            yield order[first : first + most]

    def _start(self, ids: Sequence[Sequence[int]]) -> jax.Array:
        size = next(batch for batch in self._batches if batch >= len(ids))
        longest = max(map(len, ids))
        length = next(length for length in self._lengths if length >= longest)
        ids_BT, length_B = np.zeros((size, length), np.int32), np.zeros(size, np.int32)
        for row, each in enumerate(ids):
            ids_BT[row, : len(each)], length_B[row] = each, len(each)
        return self._embed(self._params, *jax.device_put((ids_BT, length_B), self._rows))

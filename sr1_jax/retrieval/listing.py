"""The programs of a dense index and what it holds on devices, with shapes for arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from sr1_jax.abstract import Program, placed
from sr1_jax.models.encoder import Encoder, EncoderConfig, pool
from sr1_jax.retrieval.dense_search import Layout, padded_k, search_program
from sr1_jax.retrieval.embedder import shared_evenly
from sr1_jax.sharding import MESH_AXES, make_mesh

QUERY_TOKENS = 32  # of the longest query of a batch, the prefix included
_HEAD_DIM = 64


@dataclasses.dataclass(frozen=True)
class IndexShape:
    """A dense index that need not be there.

    Attributes:
        passages: N.
        width: D, of a vector.
        layers: of the encoder of queries, a BERT of that width.
    """

    passages: int
    width: int
    layers: int = 12

    @classmethod
    def parse(cls, text: str) -> IndexShape:
        """From "PASSAGESxWIDTH", as in 21015324x768.

        Raises:
            ValueError: another form, or a width that is no multiple of 64.
        """
        passages, _, width = text.partition("x")
        if not (passages.isdecimal() and width.isdecimal() and int(passages)):
            raise ValueError(f"an index is PASSAGESxWIDTH, such as 21015324x768, not {text!r}.")
        if int(width) % _HEAD_DIM or not int(width):
            raise ValueError(
                f"an index of width {width}: the encoder assumed has heads of {_HEAD_DIM}, so the "
                "width must be a multiple of that."
            )
        return cls(int(passages), int(width))

    @property
    def encoder(self) -> EncoderConfig:
        """BERT's shape (Devlin et al. 2018) at that width: feed-forward layers of 4 D, 30,522
        words, 512 positions."""
        return EncoderConfig(
            30_522, self.width, self.layers, self.width // _HEAD_DIM, 4 * self.width, 512
        )


@dataclasses.dataclass(frozen=True)
class Search:
    """The search of a batch of queries in the part of the index that a process keeps."""

    batch: int

    def __str__(self) -> str:
        return f"search {self.batch}"


@dataclasses.dataclass(frozen=True)
class Embed:
    """The vectors of a batch of queries, on the devices of one process."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"embed {self.batch}x{self.length}"


class Listed(NamedTuple):
    """What a dense index runs and holds.

    Attributes:
        programs: of each number of queries, the largest last.
        vectors: of the devices of one process, with their scales; all processes hold as much.
        encoder: its parameters, on every device.
    """

    programs: list[Program]
    vectors: Any
    encoder: Any


def dense_programs(
    index: IndexShape, options: Mapping[str, Any], k: int, devices: Sequence[Any]
) -> Listed:
    """The programs of an index that all devices share; computes nothing.

    Args:
        index: its shape.
        options: the settings `retrieval.dense`.
        k: passages a query.
        devices: of all processes; they need not be there.
    """
    process = devices[0].process_index
    own = [device for device in devices if device.process_index == process]
    mesh = make_mesh(devices=own)
    search = options["search"]
    count = -(-index.passages * len(own) // len(devices))
    rows_n = NamedSharding(mesh, PartitionSpec(MESH_AXES))
    replicated = NamedSharding(mesh, PartitionSpec())
    layout = Layout.of(count, options["dtype"], mesh, search["block"])
    vectors = layout.shapes(index.width, options["dtype"], mesh)
    program = search_program(
        mesh,
        count,
        layout,
        approximate=search["top_k"] == "approximate",
        recall=search["recall"],
    )
    programs = []
    for batch in sorted(search["batches"]):
        query_BD = jax.ShapeDtypeStruct((batch, index.width), jnp.float32, sharding=replicated)
        settings = {"k": padded_k(k, layout)}
        programs.append(Program(Search(batch), program, (*vectors, query_BD), settings))
    config = dataclasses.replace(index.encoder, dtype=options["encoder_dtype"])
    graph, params = nnx.split(nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))))
    params = placed(params, replicated)

    def embed(params, ids_BT, length_B):
        return pool(nnx.merge(graph, params)(ids_BT, length_B), length_B, "mean", normalized=True)

    jitted = jax.jit(embed, out_shardings=rows_n)
    for batch in shared_evenly(search["batches"], mesh):
        ids_BT = jax.ShapeDtypeStruct((batch, QUERY_TOKENS), jnp.int32, sharding=rows_n)
        length_B = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows_n)
        key = Embed(batch, QUERY_TOKENS)
        given = (params, ids_BT, length_B)
        programs.append(Program(key, jitted, given, tokens=batch * QUERY_TOKENS))
    return Listed(programs, vectors, params)

"""A dense index in a plan: its programs are those of a search, its memory is added up by hand."""

import jax
import numpy as np
import pytest
from flax import nnx
from test_run import shapes_of
from tiny_runs import tiny_config

from sr1_jax.models.encoder import Encoder
from sr1_jax.planning.run import device_bytes, make_run
from sr1_jax.planning.step import Assumptions, calls_of
from sr1_jax.retrieval.dense_search import VectorSearch
from sr1_jax.retrieval.listing import Embed, IndexShape, Search, dense_programs
from sr1_jax.retrieval.settings import RETRIEVAL
from sr1_jax.retrieval.vectors import Vectors, as_dtype
from sr1_jax.sharding import make_mesh

SHAPE = IndexShape(1000, 64, layers=1)
BYTES = {"float32": 4 * 64, "bfloat16": 2 * 64, "int8": 64 + 4}


def options(**changes):
    dense = RETRIEVAL.defaults().dense
    dense.search.batches = (1, 8)
    dense.update(changes)
    return dense


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_programs_are_those_of_a_search(dtype, monkeypatch):
    devices = jax.devices()[:2]
    listed = dense_programs(SHAPE, options(dtype=dtype), 3, devices)
    programs = {program.key: program for program in listed.programs}
    assert [str(key) for key in programs] == ["search 1", "search 8", "embed 2x32", "embed 8x32"]
    rng = np.random.default_rng(0)
    vector_ND = rng.normal(size=(1000, 64)).astype(np.float32)
    search = VectorSearch(
        Vectors.of(*as_dtype(vector_ND, dtype)), make_mesh(devices=devices), batches=(1, 8)
    )
    jitted, called = search._program, []

    def spy(*arguments, **settings):
        twin = programs[Search(len(arguments[2]))]
        assert shapes_of(arguments) == shapes_of(twin.arguments) and settings == twin.settings
        called.append(len(arguments[2]))
        return jitted(*arguments, **settings)

    monkeypatch.setattr(search, "_program", spy)
    search(vector_ND[:1], 3)
    search(vector_ND[:5], 3)
    assert called == [1, 8]
    program = programs[Search(8)]
    queries = jax.device_put(vector_ND[:8], program.arguments[2].sharding)
    text = jitted.lower(search._values, search._scales, queries, **program.settings).as_text()
    assert program.lower().as_text() == text


@pytest.mark.parametrize("dtype", BYTES)
def test_memory(dtype):
    """1,000 vectors on four devices: 250 each, in blocks of whole groups of 64; the encoder whole
    on each."""
    listed = dense_programs(SHAPE, options(dtype=dtype), 3, jax.devices()[:4])
    assert device_bytes(listed.vectors) == 256 * BYTES[dtype]
    encoder = Encoder(SHAPE.encoder, rngs=nnx.Rngs(0))
    numbers = sum(x.size for x in jax.tree.leaves(nnx.state(encoder)))
    # Embeddings, four products of attention, two of the feed-forward layer, biases and norms.
    embeddings, width = 30_522 + 512 + 2, 64
    layer = 4 * width * width + 8 * width * width + 4 * width + 4 * width + width + 4 * width
    assert numbers == embeddings * width + 2 * width + layer
    assert device_bytes(listed.encoder) == 4 * numbers


def test_calls_of_a_step():
    """8 episodes of two searches; a call of the tool has 16 queries at most, one process."""
    config = tiny_config()
    config.retrieval.dense.search.batches = (1, 8, 64)
    config.environment.options.search.batch = 16
    run = make_run(config, jax.devices()[:1], SHAPE)
    calls = calls_of(run, Assumptions(40, 2, 12, 24, occupancy=0.5))
    # The least program that holds a call, as often as calls are full.
    assert calls[Search(64)] == calls[Embed(64, 32)] == 8 * 2 / 16
    assert not {Search(1), Search(8)} & calls.keys()


@pytest.mark.parametrize("text", ["21015324", "x768", "1000x100", "0x64", "1e6x64"])
def test_shapes_that_are_none(text):
    with pytest.raises(ValueError, match=r"an index (is PASSAGESxWIDTH|of width)"):
        IndexShape.parse(text)
    assert IndexShape.parse("21015324x768") == IndexShape(21_015_324, 768)


def test_an_index_on_the_hosts_is_not_planned():
    config = tiny_config()
    config.retrieval.dense.search.faiss = "HNSW32"
    with pytest.raises(ValueError, match="faiss=HNSW32: the hosts keep and search that index"):
        make_run(config, jax.devices()[:1], SHAPE)

"""What tests of traces share, whatever the world of their file is."""

import pytest

from sr1_jax.retrieval import BM25Retriever
from sr1_jax.world.facts import write_corpus


@pytest.fixture(scope="module")
def retriever(world, tmp_path_factory):
    """BM25 over the passages of the file's `world`."""
    folder = tmp_path_factory.mktemp("world")
    write_corpus(world, folder / "corpus.jsonl")
    return BM25Retriever.build(folder / "corpus.jsonl", folder / "index")

"""Fixtures that write small checkpoints into the folder of a test."""

import functools

import pytest
import small_checkpoints


@pytest.fixture(scope="session")
def backend():
    return small_checkpoints.train_backend()


@pytest.fixture
def write_folder(tmp_path, backend):
    return functools.partial(small_checkpoints.write_folder, tmp_path, backend)


@pytest.fixture
def write_gguf(tmp_path, backend):
    return functools.partial(small_checkpoints.write_gguf, tmp_path / "model.gguf", backend)

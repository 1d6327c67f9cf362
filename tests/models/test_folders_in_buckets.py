"""Hugging Face folders in a bucket: read by ranges, each process what it needs."""

import collections

import jax
import numpy as np
import pytest
import safetensors.numpy
from bucket_fixtures import bucket  # noqa: F401
from small_checkpoints import FAMILIES, check_values

from sr1_jax.models import load_pretrained, weights
from sr1_jax.models.pretrained import read_model_files
from sr1_jax.sharding import make_mesh
from sr1_jax.storage import objects
from sr1_jax.storage.synced import SyncedFolder


def _brought(folder, bucket):  # noqa: F811
    SyncedFolder(folder, f"{bucket.folder}/model").push()
    return f"{bucket.folder}/model"


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_round_trip(bucket, write_folder, family, tmp_path):  # noqa: F811
    folder, _, tensors = write_folder(model_type=family)
    url = _brought(folder, bucket)
    model, tokenizer = load_pretrained(url)
    check_values(model, tensors)
    assert tokenizer.vocab_size == load_pretrained(folder)[1].vocab_size
    here = [path.name for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert "config.json" in here and not any(name.endswith(".safetensors") for name in here)


def test_no_row_is_read_by_two(bucket, write_folder, monkeypatch):  # noqa: F811
    """As several processes do it: split by stored rows, and exchanged by the devices."""
    folder, _, tensors = write_folder(model_type="qwen2")
    url, read = _brought(folder, bucket), collections.Counter()
    files = read_model_files(url)
    assert files.far

    def rows(name, first, last, of=files.rows):
        read.update((name, row) for row in range(first, last))
        return of(name, first, last)

    import dataclasses

    counted = dataclasses.replace(files, rows=rows)
    mesh = make_mesh(2, 2, 2)
    taken = []
    by_rows = weights._read_by_rows

    def noted(*arguments):
        taken.append(by_rows(*arguments))
        return taken[-1]

    monkeypatch.setattr(weights, "_read_by_rows", noted)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    model = weights.build(counted, mesh)
    monkeypatch.undo()
    check_values(model, tensors)
    assert set(read.values()) == {1} and any(one is not None for one in taken)
    plain = weights.build(files, mesh)
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, *map(_arrays, (model, plain)))
    assert all(jax.tree.leaves(same))


def _arrays(model):
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(model))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: data[:-4], "does not end where it should"),
        (lambda data: data[:6], "not a complete safetensors file"),
        (lambda data: b"\xff" * 8 + data[8:], "its header has"),
        (lambda data: data[:8] + b"?" + data[9:], "not a complete safetensors file"),
    ],
)
def test_damaged_files(bucket, write_folder, harm, message):  # noqa: F811
    folder, *_ = write_folder(model_type="llama")
    url = f"{_brought(folder, bucket)}/model.safetensors"
    objects.write(url, harm(objects.read(url)))
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*{message}"):
        read_model_files(f"{bucket.folder}/model")


def test_other_dtypes_and_what_is_missing(bucket, write_folder, tmp_path):  # noqa: F811
    folder, *_ = write_folder(model_type="llama")
    url = _brought(folder, bucket)
    safetensors.numpy.save_file({"a": np.zeros(3, np.int32)}, tmp_path / "ints")
    objects.upload(f"{url}/model.safetensors", tmp_path / "ints")
    with pytest.raises(ValueError, match="a has dtype I32, not one of F64"):
        read_model_files(url)
    objects.delete(f"{url}/model.safetensors")
    with pytest.raises(ValueError, match=r"there is no \*\.safetensors file"):
        read_model_files(url)
    with pytest.raises(ValueError, match="no such file or folder in the bucket"):
        read_model_files(f"{bucket.folder}/none")

"""Equal weights have equal fingerprints, wherever they lie; others have others."""

import shutil

import pytest

from sr1_jax.training import fingerprints
from sr1_jax.training.fingerprints import weights_fingerprint


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("words")
    return folder


def test_a_copy_is_the_same(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert weights_fingerprint(folder) == weights_fingerprint(tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("other words")
    assert weights_fingerprint(folder) == weights_fingerprint(tmp_path / "copy")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_another_byte_is_another_model(folder, name):
    before = weights_fingerprint(folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert weights_fingerprint(folder) != before


def test_a_tensor_moved_to_another_file_is_another_model(folder):
    before = weights_fingerprint(folder)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert weights_fingerprint(folder) != before


def test_a_folder_of_other_files_counts_whole(tmp_path):
    (tmp_path / "a" / "params").mkdir(parents=True)
    (tmp_path / "a" / "params" / "d").write_bytes(b"1")
    before = weights_fingerprint(tmp_path / "a")
    (tmp_path / "a" / "params" / "d").write_bytes(b"2")
    assert weights_fingerprint(tmp_path / "a") != before
    assert weights_fingerprint(tmp_path / "a" / "params" / "d") != before


def test_of_a_large_file_pieces_are_read_from_head_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprints, "_PIECE_BYTES", 4)
    file = tmp_path / "model.gguf"
    content = bytearray(1000)
    file.write_bytes(content)
    starts = fingerprints._starts(1000)
    assert (len(starts), starts[0], starts[-1]) == (16, 0, 996)
    assert starts == sorted(set(starts))
    before = weights_fingerprint(file)
    for start in starts:
        changed = bytearray(content)
        changed[start + 3] = 1
        file.write_bytes(changed)
        assert weights_fingerprint(file) != before
    file.write_bytes(bytes(1001))
    assert weights_fingerprint(file) != before

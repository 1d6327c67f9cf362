"""Objects of a bucket, from a service that works and from one that fails."""

import base64
import os
import zlib

import pytest

from sr1_jax.storage import objects
from sr1_jax.storage.objects import BucketAway, crc32c_of


def _crc32c_by_bits(data: bytes) -> str:
    """By its definition (RFC 3720, B.4): the reversed polynomial 0x82F63B78, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return base64.b64encode((value ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


@pytest.mark.parametrize("data", [b"", b"a", b"123456789", os.urandom(1000)])
def test_checksum(data, tmp_path):
    assert crc32c_of(data) == _crc32c_by_bits(data)
    (tmp_path / "a").write_bytes(data)
    assert objects.crc32c_of_file(tmp_path / "a") == _crc32c_by_bits(data)
    assert crc32c_of(data + b"x") != base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def test_what_is_written_is_read(bucket):
    url = f"{bucket.folder}/a b/ü?#.txt"
    stored = objects.write(url, b"0123456789")
    assert objects.read(url) == b"0123456789"
    assert objects.read(url, 2, 5) == b"234" and objects.read(url, 8) == b"89"
    assert objects.read(url, 4, 4) == b""
    assert objects.stat(url) == stored and stored.size == 10
    objects.write(f"{bucket.folder}2/other", b"")
    assert objects.listing(bucket.folder) == {"a b/ü?#.txt": stored}
    assert objects.listing(url) == {"": stored}
    assert objects.listing(f"{bucket.folder}/none") == {}
    objects.delete(url)
    objects.delete(url)
    with pytest.raises(FileNotFoundError):
        objects.read(url)


def test_conditions(bucket):
    url = f"{bucket.folder}/a"
    first = objects.write(url, b"1", objects.NEW)
    with pytest.raises(FileExistsError):
        objects.write(url, b"2", objects.NEW)
    second = objects.write(url, b"2", first.generation)
    with pytest.raises(FileExistsError):
        objects.write(url, b"3", first.generation)
    with pytest.raises(FileExistsError):
        objects.delete(url, first.generation)
    assert objects.read(url) == b"2"
    objects.delete(url, second.generation)
    assert objects.listing(bucket.folder) == {}


def test_large_files_go_by_parts(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_PART_BYTES", 1 << 18)
    content = os.urandom((1 << 20) + 77)
    (tmp_path / "a").write_bytes(content)
    stored = objects.upload(f"{bucket.folder}/a", tmp_path / "a")
    assert objects.read(f"{bucket.folder}/a") == content
    objects.download(f"{bucket.folder}/a", tmp_path / "b" / "c", stored)
    assert (tmp_path / "b" / "c").read_bytes() == content
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["c"]


def test_of_a_large_file_that_grows_the_beginning_arrives(bucket, tmp_path, monkeypatch, no_pauses):
    monkeypatch.setattr(objects, "_PART_BYTES", 1 << 10)
    path, content = tmp_path / "spool", os.urandom(5000)
    path.write_bytes(content)
    files = objects._files()
    put = files.put_file

    def growing(source, url):
        with open(path, "ab") as file:
            file.write(b"more")
        put(source, url)

    monkeypatch.setattr(files, "put_file", growing)
    stored = objects.upload(f"{bucket.folder}/a", path)
    assert stored.size == 5000 and objects.read(f"{bucket.folder}/a") == content
    assert [file.name for file in tmp_path.iterdir()] == ["spool"]


def test_an_object_written_anew_while_it_is_read_arrives_as_it_is_now(
    bucket, tmp_path, monkeypatch
):
    url = f"{bucket.folder}/a"
    listed = objects.write(url, b"old")
    now = objects.write(url, b"longer than it was")
    assert objects.download(url, tmp_path / "a", listed) == now
    assert (tmp_path / "a").read_bytes() == b"longer than it was"


@pytest.mark.parametrize("seed", range(3))
def test_a_service_that_fails_at_random_loses_nothing(bucket, tmp_path, seed, no_pauses):
    """Refused, unanswered, answered in vain, and cut in the middle of what is sent or answered."""
    bucket.fail_at_random(seed, share=0.3)
    for number in range(30):
        content = os.urandom(100 * number)
        (tmp_path / "a").write_bytes(content)
        stored = objects.upload(f"{bucket.folder}/{number}", tmp_path / "a")
        assert objects.read(f"{bucket.folder}/{number}") == content
        objects.download(f"{bucket.folder}/{number}", tmp_path / "b", stored)
        assert (tmp_path / "b").read_bytes() == content
    assert len(objects.listing(bucket.folder)) == 30
    assert len({fault for fault, _, _ in bucket.faults}) == 5


def test_a_bucket_that_stays_away_is_said(bucket, monkeypatch, no_pauses):
    monkeypatch.setenv("SR1_JAX_BUCKET_PATIENCE_SECONDS", "0")
    objects.forget()
    bucket.away = True
    with pytest.raises(BucketAway, match=r"gs://test-bucket/folder/a: .* does not answer"):
        objects.read(f"{bucket.folder}/a")


def test_bad_places_are_told_at_the_start(bucket):
    objects.check_place(f"{bucket.folder}/new", "--workdir", writes=True)
    assert objects.listing(bucket.folder) == {}
    with pytest.raises(ValueError, match="--workdir=gs://other/a: there is no bucket other"):
        objects.check_place("gs://other/a", "--workdir", writes=True)
    bucket.denied.add("test-bucket")
    with pytest.raises(ValueError, match=r"--workdir=.*cannot be written: .*no storage\.objects"):
        objects.check_place(bucket.folder, "--workdir", writes=True)
    with pytest.raises(ValueError, match="no address of the form"):
        objects.split("gs:///a")


def test_what_orbax_asks_of_a_bucket_is_asked_at_the_start(bucket, monkeypatch, no_pauses):
    objects.check_may_ask(bucket.folder, "checkpoint.folder")
    bucket.hidden.add("test-bucket")
    objects.check_place(bucket.folder, "--workdir", writes=True)  # objects are another right
    wanted = r"checkpoint.folder=gs://test-bucket/folder: .*roles/storage.legacyBucketReader"
    with pytest.raises(ValueError, match=wanted):
        objects.check_may_ask(bucket.folder, "checkpoint.folder")
    with pytest.raises(ValueError, match=r"folder=gs://other/a: there is no bucket other"):
        objects.check_may_ask("gs://other/a", "checkpoint.folder")
    monkeypatch.setenv("SR1_JAX_BUCKET_PATIENCE_SECONDS", "0")
    objects.forget()
    bucket.away = True
    with pytest.raises(BucketAway):
        objects.check_may_ask(bucket.folder, "checkpoint.folder")

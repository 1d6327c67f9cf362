"""A local folder and its like in a bucket."""

import os
from pathlib import Path

import pytest

from sr1_jax.storage import copies, objects
from sr1_jax.storage.copies import local_copy, written_to
from sr1_jax.storage.places import file_system_of
from sr1_jax.storage.synced import SyncedFolder


@pytest.fixture
def pair(bucket, tmp_path):
    """The same folder on two hosts."""
    return [SyncedFolder(tmp_path / host / "run", bucket.folder) for host in "ab"]


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_both_sides(pair):
    here, there = pair
    (here.folder / "sub").mkdir(parents=True)
    (here.folder / "sub" / "a").write_text("1")
    (here.folder / "log").write_text("one\n")
    (here.folder / ".hidden").write_text("stays")
    assert here.push() == 2 and here.push() == 0
    there.fetch()
    assert _files(there.folder) == {"sub/a": "1", "log": "one\n"}
    with open(here.folder / "log", "a") as file:
        file.write("two\n")
    (here.folder / "sub" / "a").unlink()
    assert here.push() == 1
    there.fetch()
    assert _files(there.folder) == {"sub/a": "1", "log": "one\ntwo\n"}
    here.push(passing=lambda name: name == "sub/a")
    there.fetch()
    assert _files(there.folder) == {"log": "one\ntwo\n"}


def test_what_was_changed_here_alone_stays(pair):
    """A run that was killed finds what it had not brought away; but not after another host went
    on."""
    here, there = pair
    here.folder.mkdir(parents=True)
    (here.folder / "log").write_text("one\n")
    here.push()
    (here.folder / "log").write_text("one\ntwo\n")
    (here.folder / "new").write_text("new")
    here.fetch()
    assert _files(here.folder) == {"log": "one\ntwo\n", "new": "new"}
    there.fetch()
    (there.folder / "log").write_text("one\nother\n")
    there.push()
    here.fetch()
    assert _files(here.folder) == {"log": "one\nother\n", "new": "new"}


def test_files_go_in_the_order_of_their_writing(pair, bucket):
    here, _ = pair
    here.folder.mkdir(parents=True)
    for number, name in enumerate(["z", "m", "a"]):
        (here.folder / name).write_text(name)
        os.utime(here.folder / name, ns=(number, number))
    here.push()
    sent = [path for method, path in bucket.requests if method == "POST"]
    assert [path.split("folder/")[1][0] for path in sent] == ["z", "m", "a"]


def test_a_push_that_fails_goes_on_where_it_stopped(pair, bucket, monkeypatch):
    here, there = pair
    here.folder.mkdir(parents=True)
    for name in "abc":
        (here.folder / name).write_text(name)
    upload, calls = objects.upload, []

    def once(url, path):
        calls.append(url)
        if len(calls) == 3:
            raise objects.BucketAway("gone")
        return upload(url, path)

    monkeypatch.setattr(objects, "upload", once)
    with pytest.raises(objects.BucketAway):
        here.push()
    assert here.push() == 1
    there.fetch()
    assert _files(there.folder) == dict.fromkeys("abc") | {name: name for name in "abc"}


def test_a_fetch_that_fails_keeps_what_came_and_passes_over_what_is_gone(pair, bucket, monkeypatch):
    here, _ = pair
    for name in ("came", "damaged", "gone"):
        objects.write(f"{bucket.folder}/{name}", name.encode())
    download = objects.download

    def failing(url, path, stored):
        if url.endswith("damaged"):
            raise objects.BucketAway("damaged")
        if url.endswith("gone"):
            objects.delete(url)
        return download(url, path, stored)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "download", failing)
        with pytest.raises(objects.BucketAway, match="damaged"):
            here.fetch()
    fetched = []

    def counting(url, path, stored):
        fetched.append(url.rsplit("/", 1)[1])
        return download(url, path, stored)

    monkeypatch.setattr(objects, "download", counting)
    assert here.fetch() == ["came", "damaged"]
    assert fetched == ["damaged"]


def test_copies_are_made_once(bucket):
    objects.write(f"{bucket.folder}/corpus/a.jsonl", b"one")
    objects.write(f"{bucket.folder}/corpus/b.jsonl", b"two")
    copy = local_copy(f"{bucket.folder}/corpus/", "data.corpus")
    assert copy.name == "corpus" and _files(copy) == {"a.jsonl": "one", "b.jsonl": "two"}
    copies.forget()
    before = len(bucket.requests)
    assert local_copy(f"{bucket.folder}/corpus", "data.corpus") == copy
    assert len(bucket.requests) - before == 1  # the listing
    objects.write(f"{bucket.folder}/corpus/a.jsonl", b"three")
    assert _files(local_copy(f"{bucket.folder}/corpus", "data.corpus"))["a.jsonl"] == "one"
    copies.forget()
    assert _files(local_copy(f"{bucket.folder}/corpus", "data.corpus"))["a.jsonl"] == "three"
    one = local_copy(f"{bucket.folder}/corpus/b.jsonl", "data.corpus")
    assert one.name == "b.jsonl" and one.read_text() == "two"
    with pytest.raises(ValueError, match=r"data\.corpus=.*/none: there is no such file or folder"):
        local_copy(f"{bucket.folder}/none", "data.corpus")
    with pytest.raises(ValueError, match=r"data\.corpus=gs://none/a: there is no bucket none"):
        local_copy("gs://none/a", "data.corpus")


def test_a_copy_that_arrives_damaged_is_not_kept(bucket, monkeypatch):
    objects.write(f"{bucket.folder}/a", b"content")
    monkeypatch.setattr(objects, "read", lambda url, start, end: b"c0ntent")
    with pytest.raises(ValueError, match=r"data\.corpus.*what arrives is not what is stored"):
        local_copy(f"{bucket.folder}/a", "data.corpus")
    monkeypatch.undo()


def test_outputs_arrive_in_the_end_or_not_at_all(bucket):
    with pytest.raises(KeyError), written_to(f"{bucket.folder}/out", "--output") as path:
        path.mkdir()
        (path / "a").write_text("half")
        raise KeyError
    assert objects.listing(bucket.folder) == {}
    with written_to(f"{bucket.folder}/out", "--output") as path:
        path.mkdir()
        (path / "a").write_text("whole")
    with written_to(f"{bucket.folder}/table.md", "--output") as path:
        path.write_text("table")
    assert set(objects.listing(bucket.folder)) == {"out/a", "table.md"}


def test_file_systems_are_told_apart():
    assert file_system_of(Path("/proc/self")) == "proc"
    assert file_system_of(Path("/nowhere/at/all")) == file_system_of(Path("/"))

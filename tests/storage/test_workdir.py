"""The folder of a run that is in a bucket."""

import time
from pathlib import Path

import pytest

from sr1_jax.storage import objects
from sr1_jax.storage.objects import NEW, BucketAway
from sr1_jax.storage.workdir import BucketWorkdir, place_of, push_now


def _names(bucket):
    return set(objects.listing(bucket.folder))


def test_it_stands_for_the_one_in_the_bucket(bucket, tmp_path):
    objects.write(f"{bucket.folder}/metrics.jsonl", b"{}", NEW)
    objects.write(f"{bucket.folder}/checkpoints/1/commit_success.txt", b"")
    objects.write(f"{bucket.folder}/trajectories/step-1.jsonl", b"")
    workdir = BucketWorkdir(bucket.folder, "run", leaves=("trajectories/*",))
    assert workdir.fetch() == ["metrics.jsonl"]
    assert (workdir.folder / "metrics.jsonl").read_text() == "{}"
    assert str(place_of(workdir.folder) / "checkpoints") == f"{bucket.folder}/checkpoints"
    assert place_of(tmp_path) == Path(tmp_path) and str(place_of("gs://a/b")) == "gs://a/b"


def test_it_is_brought_there_on_a_clock_when_told_and_at_the_end(bucket):
    workdir = BucketWorkdir(bucket.folder, "run")
    workdir.fetch()
    push_now(workdir.folder)  # it is not open
    with workdir.pushed_on_a_clock(seconds=0.1):
        (workdir.folder / "clock").write_text("")
        end = time.monotonic() + 60
        while _names(bucket) != {"clock"} and time.monotonic() < end:
            time.sleep(0.05)
    again = BucketWorkdir(bucket.folder, "run")
    with again.pushed_on_a_clock(seconds=600):
        (workdir.folder / "told").write_text("")
        push_now(workdir.folder)
        assert _names(bucket) == {"clock", "told"}
        (workdir.folder / "checkpoints").mkdir()
        (workdir.folder / "checkpoints" / "not").write_text("")
        (workdir.folder / "end").write_text("")
    assert _names(bucket) == {"clock", "told", "end"}


def test_what_passes_is_deleted_there_too(bucket):
    """The marks of an evaluation that is over: it would be taken for one that goes on."""
    workdir = BucketWorkdir(bucket.folder, "run")
    workdir.fetch()
    passing = ("eval/under_way.1a2b", "eval/nq.partial_0.jsonl")
    with workdir.pushed_on_a_clock(seconds=600):
        (workdir.folder / "eval").mkdir()
        for name in (*passing, "eval/nq.json"):
            (workdir.folder / name).write_text("")
        push_now(workdir.folder)
        assert _names(bucket) == {*passing, "eval/nq.json"}
        for name in (*passing, "eval/nq.json"):
            (workdir.folder / name).unlink()
    assert _names(bucket) == {"eval/nq.json"}


def test_it_is_brought_there_after_an_error_too(bucket):
    workdir = BucketWorkdir(bucket.folder, "run", brings=("stacks-*.txt",))
    workdir.fetch()
    with pytest.raises(KeyError), workdir.pushed_on_a_clock(seconds=600):
        (workdir.folder / "stacks-1.txt").write_text("")
        (workdir.folder / "of-the-first").write_text("")
        raise KeyError
    assert _names(bucket) == {"stacks-1.txt"}


def test_a_bucket_that_is_away_for_a_while_is_waited_for(bucket, monkeypatch, capsys):
    workdir = BucketWorkdir(bucket.folder, "run")
    workdir.fetch()
    upload, calls = objects.upload, []

    def away_at_first(url, path):
        calls.append(url)
        if len(calls) < 3:
            raise BucketAway("it is away.")
        return upload(url, path)

    monkeypatch.setattr(objects, "upload", away_at_first)
    with workdir.pushed_on_a_clock(seconds=0.05):
        (workdir.folder / "a").write_text("")
        end = time.monotonic() + 60
        while len(calls) < 3 and time.monotonic() < end:
            time.sleep(0.05)
    assert _names(bucket) == {"a"} and "it is away. Trying again." in capsys.readouterr().err

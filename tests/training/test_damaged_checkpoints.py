"""Checkpoints that a disk, or a bucket, does not give back as they were written."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from sr1_jax.exit_codes import ExitCode, code_of
from sr1_jax.storage import objects
from sr1_jax.storage.lease import LeaseLost
from sr1_jax.storage.objects import BucketAway
from sr1_jax.training import checkpoints as checkpoints_module
from sr1_jax.training.checkpoints import CheckpointFailed, RunCheckpoints
from sr1_jax.training.checksums import damages

_STEPS = (1, 2, 3)
# Files of which Orbax looks only whether they are there, or which it writes last.
_UNREAD = {"_CHECKPOINT_METADATA", "commit_success.txt", "sums/commit_success.txt"}


def _state(step):
    drawn = np.random.default_rng(step).normal(size=(300, 200))
    return {"a": jnp.asarray(drawn, jnp.float32), "b": jnp.arange(step)}


def _write(folder, **options):
    with RunCheckpoints(folder, keep=9, **options) as checkpoints:
        for step in _STEPS:
            checkpoints.save(step, _state(step), {"step": step}, score=0.1 * step)


def _halved(data):
    return data[: len(data) // 2]


def _flipped(data):
    """With one bit in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _taken_up(folder):
    """The newest step of what is found, once what it holds was compared."""
    with RunCheckpoints(folder, keep=9) as checkpoints:
        step = checkpoints.latest_step
        restored = checkpoints.restore(step, _state(step))
        jax.tree.map(np.testing.assert_array_equal, restored, _state(step))
        assert checkpoints.facts(step) == {"step": step}
        return step


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    _write(folder)
    return folder


def test_whole_ones_are_not_found_damaged(written):
    assert [damages(written / str(step)) for step in _STEPS] == [[], [], []]
    sums = json.loads((written / "3" / "sums" / "sums.json").read_text())["files"]
    names = {p.relative_to(written / "3").as_posix() for p in (written / "3").rglob("*")}
    files = {name for name in names if (written / "3" / name).is_file()}
    assert files - set(sums) == {*_UNREAD, "sums/sums.json"}


@pytest.mark.parametrize("harm", [_halved, _flipped])
def test_each_file_of_the_newest(written, tmp_path, capfd, harm):
    """The run is taken up from the checkpoint before it, or, where the harm changes nothing that
    is read, from this one; never from another state."""
    files = [path.relative_to(written) for path in (written / "3").rglob("*") if path.is_file()]
    assert len(files) > 8
    for file in files:
        folder = tmp_path / "checkpoints"
        shutil.copytree(written, folder)
        (folder / file).write_bytes(harm((folder / file).read_bytes()))
        step, said = _taken_up(folder), capfd.readouterr().err
        assert step == 2 or (step == 3 and file.relative_to("3").as_posix() in _UNREAD), file
        if step == 2:
            assert f"{folder / '3'} is damaged: " in said and "It is called 3.damaged now" in said
            assert (folder / "3.damaged").is_dir() and not (folder / "3").exists()
            with RunCheckpoints(folder, keep=9) as checkpoints:
                checkpoints.save(3, _state(3), {"step": 3})
            assert _taken_up(folder) == 3
        shutil.rmtree(folder)


def test_a_file_that_is_missing(written, tmp_path, capfd):
    for number, name in enumerate(["sums", "facts/metadata", "_CHECKPOINT_METADATA", "state/d"]):
        folder = tmp_path / str(number)
        shutil.copytree(written, folder)
        path = folder / "3" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert _taken_up(folder) == 2
        assert "3 is damaged: " in capfd.readouterr().err


def test_who_only_reads_changes_nothing(written, tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    (folder / "3" / "facts" / "metadata").write_text("{}")
    with RunCheckpoints(folder, keep=9, reading=True) as checkpoints:
        assert (checkpoints.steps, checkpoints.latest_step, checkpoints.best_step) == ([1, 2], 2, 2)
    assert "It is left out." in capfd.readouterr().err and (folder / "3").is_dir()


def test_checkpoints_of_earlier_versions_have_no_checksums(written, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(written, folder)
    for step in _STEPS:
        shutil.rmtree(folder / str(step) / "sums")
        metadata = folder / str(step) / "_CHECKPOINT_METADATA"
        kept = json.loads(metadata.read_text())
        del kept["item_handlers"]["sums"]
        metadata.write_text(json.dumps(kept))
    assert _taken_up(folder) == 3


def test_a_run_goes_back_to_one_that_is_whole(tmp_path):
    """Damage of older ones is looked for when they are wanted."""
    _write(tmp_path)
    files = (path for path in (tmp_path / "2" / "state").rglob("*") if path.is_file())
    large = max(files, key=lambda path: path.stat().st_size)
    large.write_bytes(_flipped(large.read_bytes()))
    with RunCheckpoints(tmp_path, keep=9) as checkpoints:
        assert checkpoints.last_good == 3
        checkpoints.forget_after(2)
        assert checkpoints.last_good == 1 and checkpoints.steps == [1]


# In a bucket


def test_each_object_of_the_newest(bucket, capfd):
    folder = epath.Path(bucket.folder)
    _write(folder)
    names = objects.listing(f"{bucket.folder}/3")
    assert len(names) > 10 and damages(folder / "3") == []
    for name in names:
        url = f"{bucket.folder}/3/{name}"
        whole = objects.read(url)
        for harm in (_halved, _flipped):
            objects.write(url, harm(whole))
            assert damages(folder / "3") or name in _UNREAD, name
        objects.write(url, whole)
    assert damages(folder / "3") == []
    objects.write(f"{bucket.folder}/3/facts/metadata", b"{}")
    assert _taken_up(folder) == 2
    said = capfd.readouterr().err
    assert f"{bucket.folder}/3 is damaged: facts/metadata has 2 bytes, not 11" in said
    assert "It counts as unfinished" in said


def test_an_unfinished_one_is_none(bucket):
    """Its objects lie where those of the next go."""
    folder = epath.Path(bucket.folder)
    _write(folder)
    objects.delete(f"{bucket.folder}/3/commit_success.txt")
    objects.write(f"{bucket.folder}/3/state/ocdbt.process_7/manifest.ocdbt", b"left")
    assert _taken_up(folder) == 2
    with RunCheckpoints(folder, keep=2) as checkpoints:
        checkpoints.save(3, _state(3), {"step": 3})
    assert "state/ocdbt.process_7/manifest.ocdbt" not in objects.listing(f"{bucket.folder}/3")
    assert _taken_up(folder) == 3


def test_on_a_mounted_bucket_a_mark_commits(tmp_path, monkeypatch):
    """There a folder gets its name file by file; it has that from the start instead."""
    monkeypatch.setattr(checkpoints_module, "file_system_of", lambda folder: "fuse.gcsfuse")
    seen = []

    def look():
        seen.append({path.name for path in tmp_path.iterdir()})

    _write(tmp_path, before_commit=look)
    assert seen == [{"1"}, {"1", "2"}, {"1", "2", "3"}]
    (tmp_path / "3" / "commit_success.txt").unlink()
    assert _taken_up(tmp_path) == 2


# What cannot be written


def test_what_fails_before_the_commit_keeps_it_from_being_made(tmp_path):
    def fail():
        raise OSError("the metrics are lost")

    with pytest.raises(
        CheckpointFailed, match=r"checkpoint .* not be written to .*: the metrics are lost"
    ):
        _write(tmp_path, before_commit=fail)
    assert not (tmp_path / "1").exists()


def test_another_run_is_noticed_before_anything_is_written(tmp_path):
    def lost():
        raise LeaseLost("another run has taken over")

    with pytest.raises(LeaseLost, match="taken over"):
        _write(tmp_path, before_save=lost)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_folder_that_takes_no_more(tmp_path, small_disk, kind):
    folder = small_disk(kind, holds=_one_checkpoint)
    message = rf"checkpoint.* could not be written to {folder}.*Those"
    with (
        pytest.raises(OSError, match=message) as failed,
        RunCheckpoints(folder, keep=9) as checkpoints,
    ):
        checkpoints.save(2, _large(), {"step": 2})
    assert code_of(failed.value) == ExitCode.STORAGE
    assert not (folder / "2").exists()
    with RunCheckpoints(folder, keep=9, reading=True) as checkpoints:
        assert checkpoints.latest_step == 1


def _one_checkpoint(folder):
    with RunCheckpoints(folder, keep=9) as checkpoints:
        checkpoints.save(1, _state(1), {"step": 1})


def _large():
    return {"a": jnp.asarray(np.random.default_rng(0).normal(size=(1 << 21,)))}


def test_a_service_that_does_not_answer_damages_nothing(bucket, monkeypatch):
    """What cannot be read now may be as it was written."""
    folder = epath.Path(bucket.folder)
    _write(folder)

    def away(url, *_):
        raise BucketAway(f"{url}: the storage service does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(objects, "read", away)
        with pytest.raises(BucketAway):
            damages(folder / "3")
    assert _taken_up(folder) == 3


def test_processes_that_see_different_checkpoints_do_not_go_on(written, monkeypatch):
    def gather(mine):
        return [mine, mine[:-1] if mine == [1, 2, 3] else mine]

    monkeypatch.setattr(checkpoints_module, "gather", gather)
    with pytest.raises(ConnectionError, match=r"different .*: \[1, 2, 3\], \[1, 2\]"):
        RunCheckpoints(written, keep=9, reading=True)


def test_a_bucket_that_goes_away(bucket, monkeypatch, no_pauses):
    monkeypatch.setenv("SR1_JAX_BUCKET_PATIENCE_SECONDS", "1")
    objects.forget()
    folder = epath.Path(bucket.folder)
    _write(folder)
    checkpoints = RunCheckpoints(folder, keep=9)
    bucket.away = True
    with pytest.raises(CheckpointFailed, match=r"could not be written to gs://.*Those") as failed:
        checkpoints.save(4, _state(4), {"step": 4})
        checkpoints.close()
    assert code_of(failed.value) == ExitCode.TRANSIENT
    bucket.away = False
    assert _taken_up(folder) == 3

"""A whole run with everything in a bucket: killed, taken up again, on a service that fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sr1_jax.storage import objects
from sr1_jax.storage.synced import SyncedFolder

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).with_name("tiny_config.py")
OVERRIDES = ("--config.rollout.deterministic=true",)


def _start(url, *more, scratch):
    command = [sys.executable, "-m", "sr1_jax.train", f"--config={CONFIG}", f"--workdir={url}"]
    environment = os.environ | {
        "SR1_JAX_SCRATCH": str(scratch),
        "JAX_COMPILATION_CACHE_DIR": str(scratch.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [*command, *OVERRIDES, *more], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _finish(process):
    output, _ = process.communicate(timeout=6000)
    assert process.returncode == 0, output
    return output


def _brought(url, folder):
    """All of a workdir in a bucket, as a folder here."""
    SyncedFolder(folder, url).fetch()
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The same run on a disk."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    _finish(_start(workdir, scratch=workdir.parent / "none"))
    return workdir


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_killed_on_one_host_and_taken_up_on_another(bucket, tmp_path, unbroken, same_run):
    """The run ends as one that nothing happened to, on a disk, and leaves the same files."""
    url = f"{bucket.folder}/run"
    first = _start(url, scratch=unbroken.parent / "a")
    while "checkpoints/2/commit_success.txt" not in objects.listing(url):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    bucket.fail_at_random(seed=0, share=0.03)
    output = _finish(_start(url, scratch=unbroken.parent / "b"))
    assert "Taken up again after step 2." in output and len(bucket.faults) > 5
    bucket.fail = lambda method, path: None
    there = _brought(url, tmp_path / "there")
    same_run(unbroken, there, steps=(2, 4))
    wanted = {p.relative_to(unbroken) for p in unbroken.rglob("*") if p.is_file()}
    found = {p.relative_to(there) for p in there.rglob("*") if p.is_file()}
    # An index is named after the place of its corpus, which is another one here.
    named = {str(p).split("index-")[0] + p.name if "index-" in str(p) else str(p) for p in found}
    ours = {p for p in wanted if p.parts[0] not in ("checkpoints", "tensorboard", ".lock", "base")}
    for path in ours:
        kept = str(path).split("index-")[0] + path.name if "index-" in str(path) else str(path)
        assert path.name.startswith(".") or kept in named, path


def in_cluster(url, scratch):
    """The command line of each of two processes, on hosts with disks of their own."""

    def arguments(process, coordinator):
        start = f"import os; os.environ['SR1_JAX_SCRATCH'] = '{scratch}-{process}'; "
        start += "import runpy; runpy.run_module('sr1_jax.train', run_name='__main__')"
        return (
            "-c", start, f"--config={CONFIG}", f"--workdir={url}", *OVERRIDES,
            "--config.checkpoint.every=1", f"--coordinator={coordinator}", "--processes=2",
            f"--process={process}", "--join_seconds=60",
        )  # fmt: skip

    return arguments


@pytest.mark.parametrize("dead", [0, 1])
def test_two_processes_killed_and_taken_up(bucket, tmp_path, start_processes, same_run, dead):
    """One dies, the other ends; on other hosts, on a service that fails, they go on, and what is in
    the bucket in the end is what two processes leave on a disk."""
    whole, url = tmp_path / "whole", f"{bucket.folder}/run"
    start_processes(in_cluster(whole, tmp_path / "none")).check()
    first = start_processes(in_cluster(url, tmp_path / "a"))
    while "checkpoints/2/commit_success.txt" not in objects.listing(url):
        assert [process.poll() for process in first.running] == [None, None], first.err(0)
        time.sleep(0.05)
    first.running[dead].send_signal(signal.SIGKILL)
    assert first.codes(120)[1 - dead] != 0
    bucket.fail_at_random(seed=dead, share=0.03)
    second = start_processes(in_cluster(url, tmp_path / "b"))
    second.check()
    assert "Taken up again after step" in second.out(0) and len(bucket.faults) > 5
    bucket.fail = lambda method, path: None
    same_run(whole, _brought(url, tmp_path / "there"), steps=(3, 4))


def test_a_second_run_is_refused(bucket, tmp_path):
    url = f"{bucket.folder}/run"
    first = _start(url, scratch=tmp_path / "a")
    while ".lease" not in objects.listing(url):
        time.sleep(0.05)
    second = _start(url, scratch=tmp_path / "b")
    output, _ = second.communicate(timeout=600)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert f"is in use by process {first.pid} on host" in output


def test_places_that_cannot_be_used(bucket, tmp_path):
    process = _start("gs://no-such-bucket/run", scratch=tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert output.splitlines()[-1] == (
        "error: --workdir=gs://no-such-bucket/run: there is no bucket no-such-bucket."
    )

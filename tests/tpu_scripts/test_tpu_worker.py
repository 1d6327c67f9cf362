"""worker.sh, run for real in a folder that stands for the home folder of a worker."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from sr1_jax.exit_codes import ExitCode

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("pgrep") is None,
    reason="workers are Linux machines with procps",
)

# Stands for sr1_jax.logged, which needs more than Python alone.
LOGGED = (
    "import os, sys; folder, dashes, *command = sys.argv[1:]; print('kept in', folder, dashes)\n"
    "sys.stdout.flush(); os.execv(command[0], command)"
)
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('HF_TOKEN')]))"


class Worker:
    """A worker after setup: code/ and a venv whose Python is this one."""

    def __init__(self, cloud, home):
        self.cloud, self.folder = cloud, home / "sr1_jax"
        self.env = cloud.env | {"HOME": str(home)}
        (self.folder / "code").mkdir(parents=True)
        (self.folder / "venv/bin").mkdir(parents=True)
        python = self.folder / "venv/bin/python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
        python.chmod(0o700)
        shutil.copy(cloud.root / "tpu_scripts/worker.sh", self.folder)

    def __call__(self, *arguments):
        return subprocess.run(
            ["bash", str(self.folder / "worker.sh"), *arguments],
            capture_output=True,
            text=True,
            env=self.env,
            timeout=60,
        )

    def status(self):
        [line] = self("status").stdout.splitlines()
        marker, _, answer = line.split(" ", 2)
        assert marker == "SR1_WORKER"
        return answer

    def wait(self, *states):
        for _ in range(1000):
            if (status := self.status()).startswith(states):
                return status
            time.sleep(0.02)
        raise AssertionError(f"still {status}")

    def log(self):
        return (self.folder / "train.log").read_text()


@pytest.fixture
def worker(cloud, tmp_path):
    worker = Worker(cloud, tmp_path / "worker home")
    yield worker
    if (worker.folder / "pid").exists():
        group = int((worker.folder / "pid").read_text().split()[0])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_training_runs_in_the_background_until_it_is_finished(worker):
    assert worker.status() == "idle"
    assert "no log yet" in worker("log").stderr
    started = worker("start", "-c", "import time; time.sleep(0.3); print('done')")
    assert re.fullmatch(r"SR1_WORKER \S+ is started, process \d+\n", started.stdout)
    assert worker.status().startswith("running, process ")
    assert worker.wait("finished") == "finished"
    assert worker.log().endswith("\ndone\n")
    assert re.search(r"^\[\S+\] done$", worker("log", "--lines=1").stdout)


def test_two_trainings_at_once_are_refused(worker):
    assert worker("start", "-c", "import time; time.sleep(60)").returncode == 0
    again = worker("start", "-c", "0")
    assert again.returncode == 1 and "training is running already" in again.stderr
    setup = worker("setup", "--python=3.12")
    assert setup.returncode == 1 and "launch.sh SETTINGS --stop" in setup.stderr
    assert (worker.folder / "code").is_dir()


def test_stop_ends_training_and_its_children(worker):
    code = "import subprocess; print('up', flush=True); subprocess.run(['sleep', '60'])"
    worker("start", "-c", code)
    while "up" not in worker.log():
        time.sleep(0.02)
    group = int((worker.folder / "pid").read_text().split()[0])
    stopped = worker("stop")
    assert stopped.returncode == 0 and stopped.stdout.endswith(" is stopped\n")
    assert worker.status() == "stopped"
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout
    assert not re.search(rf"^ *{group} +[^Z]", listed, re.MULTILINE)
    assert worker("stop").stdout.endswith(" is stopped\n")
    assert worker("start", "-c", "0").returncode == 0
    assert worker.wait("finished")


def test_failures_are_told_apart(worker):
    worker("start", "-c", "raise SystemExit(3)")
    assert worker.wait("failed") == "failed, exit code 3: "
    worker("start", "-c", "print('error: a.jsonl:7: no JSON'); print('bye'); raise SystemExit(2)")
    assert worker.wait("failed") == "failed, exit code 2: a.jsonl:7: no JSON"
    worker("start", "-c", "import os, signal; os.killpg(0, signal.SIGKILL)")
    assert worker.wait("failed").startswith("failed, it vanished without an exit code")


def test_a_reboot_ends_what_ran(worker):
    worker("start", "-c", "import time; time.sleep(60)")
    group = (worker.folder / "pid").read_text().split()[0]
    (worker.folder / "pid").write_text(f"{group} another-boot\n")
    assert worker.status().startswith("failed, it vanished")


def test_the_token_reaches_training_and_nothing_else(worker):
    (worker.folder / "hf_token").write_text("hf_secret\n")
    worker("start", "-c", SHOW)
    worker.wait("finished")
    assert json.loads(worker.log().splitlines()[-1]) == [[], "hf_secret"]
    (worker.folder / "hf_token").unlink()
    started = worker("start", "-c", SHOW)
    worker.wait("finished")
    assert json.loads(worker.log().splitlines()[-1]) == [[], None]
    assert "hf_secret" not in started.stdout + started.stderr


AWKWARD = """--config.data.note=it's "two  words" & $HOME `id` $(id) \\ (1) * ; #é"""


def test_arguments_survive_from_the_settings_to_python(worker, cloud, tmp_path):
    """launch.sh, gcloud's ssh (a shell on the worker) and worker.sh leave them as they are."""
    module = worker.folder / "code/sr1_jax"
    module.mkdir()
    (module / "train.py").write_text(SHOW)
    (module / "logged.py").write_text(LOGGED)
    (module / "__init__.py").touch()
    (cloud.fake / "worker_home").write_text(str(tmp_path / "worker home"))
    cloud.configure(f"ARG={AWKWARD}".replace(" #", "#"), "ARG=' a  # b '")
    launched = cloud.run("launch.sh", "--", AWKWARD, "", "two\nlines")
    assert launched.returncode == 0, launched.stderr
    worker.wait("finished")
    *_, kept, shown = worker.log().splitlines()
    assert kept == "kept in --folder=gs://bucket/runs/a/logs --"
    arguments, _ = json.loads(shown)
    assert arguments == [
        *("--distributed", "--config=configs/demo.py", "--workdir=gs://bucket/runs/a"),
        *(AWKWARD.replace(" #", "#"), " a  # b ", AWKWARD, "", "two\nlines"),
    ]


def test_a_typing_error_ends_the_launcher_at_the_first_try(worker, cloud, tmp_path):
    """keep.sh, worker.sh, sr1_jax.logged and sr1_jax.train, all as they are."""
    python = worker.folder / "venv/bin/python"
    python.write_text(
        f"#!/bin/sh\nwhile [ ! -e {shlex.quote(str(tmp_path))}/go ]; do sleep 0.05; done\n"
        f'exec {sys.executable} "$@"\n'
    )
    (worker.folder / "code/sr1_jax").symlink_to(REPOSITORY / "sr1_jax")
    (worker.folder / "code/configs").symlink_to(REPOSITORY / "configs")
    (cloud.fake / "worker_home").write_text(str(tmp_path / "worker home"))
    workdir = tmp_path / "run"
    cloud.configure("ARG=--config.rollout.temprature=1", WORKDIR=str(workdir), POLL_SECONDS="1")
    assert cloud.run("launch.sh").returncode == 0
    cloud.calls()
    command = [str(cloud.root / "tpu_scripts/keep.sh"), str(cloud.settings)]
    keep = subprocess.Popen(command, env=cloud.env, text=True, stderr=subprocess.PIPE)
    told = ""
    for line in keep.stderr:
        told += line
        if "training is running" in line:
            (tmp_path / "go").touch()
    assert keep.wait(120) == ExitCode.BAD_INPUT
    assert "exit code 2: --config.rollout.temprature" in told and "Did you mean" in told
    assert "training failed with exit code 2, after which it is not started again" in told
    assert not any("worker.sh start" in call[-1] for call in cloud.calls())
    (log,) = (workdir / "logs").iterdir()
    assert "error: --config.rollout.temprature" in log.read_text()


def test_the_environment_reaches_training(worker):
    (worker.folder / "environment").write_text("XLA_FLAGS=--a=1 --b='$(id)'\nEMPTY=\n")
    show = "import os; print([os.environ.get(name) for name in ('XLA_FLAGS', 'EMPTY')])"
    worker("start", "--environment", "-c", show)
    worker.wait("finished")
    assert worker.log().splitlines()[-1] == repr(["--a=1 --b='$(id)'", ""])
    assert (worker.folder / "environment").stat().st_mode & 0o777 == 0o600
    worker("start", "-c", show)  # one that was left there is not that of this run
    worker.wait("finished")
    assert worker.log().splitlines()[-1] == "[None, None]"


def test_stop_gives_time_to_save(worker):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), print('saved'), sys.exit(80)))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(60)"
    )
    for seconds, ending in (("20", " is stopped\n"), ("0", ", killed after 0 s\n")):
        worker("start", "-c", code)
        while not worker.log().endswith("up\n"):
            time.sleep(0.02)
        stopped = worker("stop", f"--seconds={seconds}")
        assert stopped.stdout.endswith(ending)
        assert worker.log().endswith("saved\n" if seconds == "20" else "up\n")


def test_versions_are_chosen_of_the_code_that_was_sent(worker, cloud):
    cloud.replace(
        "uv",
        'echo uv "$@" >>"$FAKE/tools"; cat >>"$FAKE/tools"\n'
        'while [ "$1" != --output-file ]; do shift; done; printf "a==1\\nb==2\\n" >"$2"',
    )
    with tarfile.open(worker.folder / "code.tar.gz", "w:gz") as archive:
        archive.add(cloud.root / "configs/demo.py", "setup.py")
    result = worker("choose", "--python=3.12", "--extras=wandb,parquet")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(" has chosen 2 versions\n")
    assert (cloud.fake / "tools").read_text().splitlines() == [
        "uv pip compile --quiet --python-version 3.12 --extra=wandb --extra=parquet"
        " --output-file requirements.lock code/setup.py -",
        "jax[tpu]",
    ]
    assert (worker.folder / "code/setup.py").is_file()


def test_code_that_does_not_come_whole_leaves_the_old(worker):
    (worker.folder / "code/old.py").touch()
    (worker.folder / "requirements.lock").write_text("jax==1\n")
    (worker.folder / "code.tar.gz").write_bytes(b"cut")
    assert worker("setup", "--python=3.12").returncode != 0
    assert (worker.folder / "code/old.py").exists()


def test_setup_installs_and_mounts(worker, cloud):
    """With fake tools; the new code replaces the old."""
    (worker.folder / "requirements.lock").write_text("jax==1\n")
    for tool in ("uv", "gcsfuse", "sudo"):
        cloud.replace(tool, f'echo {tool} "$@" >>"$FAKE/tools"')
    cloud.replace("mountpoint", "exit 1")
    (worker.folder / "code/old.py").touch()
    (worker.folder / "sr1_jax").mkdir()
    with tarfile.open(worker.folder / "code.tar.gz", "w:gz") as archive:
        archive.add(cloud.root / "configs/demo.py", "configs/demo.py")
    (worker.folder / "hf_token").write_text("x")
    python = worker.folder / "venv/bin/python"
    python.write_text('#!/bin/sh\necho python "$1" >>"$FAKE/tools"\n')
    result = worker("setup", "--python=3.12", "--mount=my-data")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(" is set up\n")
    assert sorted(p.name for p in (worker.folder / "code").iterdir()) == ["configs"]
    assert (worker.folder / "hf_token").stat().st_mode & 0o777 == 0o600
    user = f"{os.getuid()}:{os.getgid()}"
    assert (cloud.fake / "tools").read_text().splitlines() == [
        f"uv pip install --python {python} --requirement requirements.lock",
        f"uv pip install --python {python} --no-deps --editable code",
        "python -c",
        "sudo mkdir -p /mnt/my-data",
        f"sudo chown {user} /mnt/my-data",
        "gcsfuse --implicit-dirs --rename-dir-limit=200000 --enable-streaming-writes=false my-data"
        " /mnt/my-data",
    ]


def test_open_files_in_a_bucket_are_uploaded_while_training_runs(worker, cloud, tmp_path):
    (worker.folder / "bucket").write_text("my-data")
    cloud.replace("mountpoint", "exit 0")
    cloud.replace("sync", 'echo "$@" >>"$FAKE/synced"')
    (tmp_path / "run/tensorboard").mkdir(parents=True)
    (tmp_path / "run/tensorboard/events.1").touch()
    worker.env["UPLOAD_SECONDS"] = "0.05"
    synced = cloud.fake / "synced"
    worker("start", "-c", "import time; time.sleep(60)", f"--workdir={tmp_path}/run")
    while not synced.exists() or len(synced.read_text().splitlines()) < 2:
        time.sleep(0.02)
    run = f"{tmp_path}/run"
    line = f"{run}/metrics.jsonl {run}/tensorboard/events.1"
    assert set(synced.read_text().splitlines()) == {line}
    worker("stop")
    time.sleep(0.2)
    count = len(synced.read_text().splitlines())
    time.sleep(0.2)
    assert len(synced.read_text().splitlines()) == count


def test_setup_makes_a_venv_and_clones(worker, cloud):
    shutil.rmtree(worker.folder / "venv")
    (worker.folder / "requirements.lock").write_text("jax==1\n")
    cloud.replace("git", 'echo git "$@" >>"$FAKE/tools"; mkdir code.new')
    cloud.replace(
        "uv",
        'echo uv "$@" >>"$FAKE/tools"\n'
        '[ "$1" = pip ] || { mkdir -p venv/bin; ln -s /bin/true venv/bin/python; }',
    )
    result = worker("setup", "--python=3.13", "--repo=https://a/b.git", "--branch=v1")
    assert result.returncode == 0, result.stderr
    assert (cloud.fake / "tools").read_text().splitlines()[:2] == [
        "git clone --quiet --depth 1 --branch v1 https://a/b.git code.new",
        "uv venv --python 3.13 venv",
    ]


def test_a_setup_that_fails_does_not_say_it_is_done(worker, cloud):
    missing = worker("setup", "--python=3.12")
    assert missing.returncode == 1 and "there is no requirements.lock" in missing.stderr
    (worker.folder / "requirements.lock").write_text("jax==1\n")
    cloud.replace("uv", "echo no such version >&2; exit 2")
    with tarfile.open(worker.folder / "code.tar.gz", "w:gz"):
        pass
    result = worker("setup", "--python=3.12")
    assert result.returncode != 0
    assert "is set up" not in result.stdout and "no such version" in result.stderr


def test_start_needs_a_setup(worker):
    shutil.rmtree(worker.folder / "venv")
    result = worker("start", "-c", "0")
    assert result.returncode == 1 and "run setup.sh" in result.stderr


def test_pack_leaves_out_what_is_large(worker, tmp_path):
    workdir = tmp_path / "my run"
    files = "metrics.jsonl checkpoints/1/a base/b data/c eval/data/d programs/p".split()
    for path in files:
        (workdir / path).parent.mkdir(parents=True, exist_ok=True)
        (workdir / path).write_text(path)

    def packed(*options):
        assert worker("pack", str(workdir), *options).returncode == 0
        with tarfile.open(worker.folder / "results.tar.gz") as archive:
            return {m.name for m in archive.getmembers() if m.isfile()}

    assert packed() == {"./metrics.jsonl", "./eval/data/d"}
    assert packed("--checkpoints") == {
        *("./metrics.jsonl", "./eval/data/d", "./checkpoints/1/a", "./base/b", "./data/c")
    }
    missing = worker("pack", str(tmp_path / "none"))
    assert missing.returncode == 1 and "no folder" in missing.stderr


def test_unknown_commands_and_options(worker):
    for arguments in (
        ["frob"], [], ["setup", "--frob"], ["choose", "--frob"], ["log", "--frob"],
        ["stop", "--frob"],
    ):  # fmt: skip
        result = worker(*arguments)
        assert result.returncode == 1 and "unknown" in result.stderr

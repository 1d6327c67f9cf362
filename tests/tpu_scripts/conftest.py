"""A checkout of the scripts with fake tools on PATH; nothing here ever reaches a real cloud."""

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FAKE_TOOL = Path(__file__).with_name("fake_tool.sh")
SETTINGS = {
    "PROJECT": "my-project",
    "ZONE": "us-east5-b",
    "NAME": "run",
    "ACCELERATOR_TYPE": "v6e-8",
    "CAPACITY": "spot",
    "CONFIG": "configs/demo.py",
    "WORKDIR": "gs://bucket/runs/a",
    "POLL_SECONDS": "0",
    "BACKOFF_SECONDS": "0",
    "GKE_CLUSTER": "cluster",
    "GKE_LOCATION": "us-east5",
    "GKE_IMAGE": "images/sr1_jax:1",
}


@dataclass
class Cloud:
    """The scripts, and the fake cloud they talk to.

    Attributes:
        root: checkout that the scripts are part of.
        fake: what the fake tools write and read, see fake_tool.sh.
        settings: the settings file that `run` gives to a script.
    """

    root: Path
    fake: Path
    settings: Path
    env: dict[str, str]

    def configure(self, *lines: str, workers: int = 1, **changes: str | None) -> None:
        """Writes the settings file; a change to None leaves that key out."""
        values = {k: v for k, v in (SETTINGS | changes).items() if v is not None}
        text = "\n".join([*(f"{key}={value}" for key, value in values.items()), *lines])
        self.settings.write_text(text + "\n")
        (self.fake / "workers").write_text(f"{workers}\n")

    def play(self, kind: str, *lines: str) -> None:
        """What the tools answer, in turn: kind is states, creates, statuses or list."""
        (self.fake / kind).write_text("".join(f"{line}\n" for line in lines))

    def replace(self, tool: str, body: str) -> None:
        """Puts a shell script in the place of any tool."""
        path = self.fake.parent / "tools" / tool
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(stat.S_IRWXU)

    def run(self, script: str, *options: str, answer: str = "") -> subprocess.CompletedProcess:
        name, *action = script.split()
        command = [str(self.root / "tpu_scripts" / name), *action, str(self.settings), *options]
        return self.shell(command, answer)

    def shell(self, command: list[str], answer: str = "") -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            input=answer,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=60,
            cwd=self.fake,  # relative paths of a run are none of ours
        )

    @property
    def cache(self) -> Path:
        """Where the scripts keep files of the run "run"."""
        return Path(self.env["HOME"]) / ".cache/sr1_jax/run"

    def lock(self, text: str = "jax==1.2.3\n") -> Path:
        """Pins versions as an earlier set-up has."""
        path = self.cache / "requirements.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def calls(self) -> list[list[str]]:
        """All calls of tools so far, and forgets them."""
        file = self.fake / "calls"
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        return [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]

    def verbs(self) -> list[str]:
        """All calls so far as one word each: create, describe, scp, ssh:start …"""
        return [_verb(call) for call in self.calls()]


def _verb(call: list[str]) -> str:
    words = {"create", "describe", "delete", "list", "scp", "ssh", "rsync", "apply", "logs"}
    verb = next(word for word in call if word in words)
    command = next((word for word in call if word.startswith("--command=")), "")
    return f"{verb}:{command.split()[2]}" if "worker.sh" in command else verb


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A git repository with the scripts, one config, and files that are new or ignored."""
    root = tmp_path_factory.mktemp("checkout with spaces") / "sr1"
    shutil.copytree(REPOSITORY / "tpu_scripts", root / "tpu_scripts")
    for path in ("configs/demo.py", "sr1_jax/train.py", "deleted.py", "notes.txt", "runs/old.bin"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(path)
    (root / ".gitignore").write_text("runs/\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=a"], check=True)
    (root / "deleted.py").unlink()
    (root / "new file.txt").write_text("not added yet")
    return root


@pytest.fixture
def cloud(checkout, tmp_path) -> Cloud:
    tools, fake, home = (tmp_path / name for name in ("tools", "fake", "home"))
    for folder in (tools, fake, home):
        folder.mkdir()
    for name in ("gcloud", "kubectl", "docker", "gsutil", "ssh", "scp"):
        shutil.copy(FAKE_TOOL, tools / name)
        (tools / name).chmod(stat.S_IRWXU)
    env = {
        "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "FAKE": str(fake),
        "TMPDIR": str(tmp_path),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        # Should a real tool run after all, it finds no account and no cluster.
        "CLOUDSDK_CONFIG": str(home / "gcloud"),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "KUBECONFIG": "/dev/null",
    }
    cloud = Cloud(checkout, fake, tmp_path / "my run.env", env)
    cloud.configure()
    return cloud

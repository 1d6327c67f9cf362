"""A process that hangs ends, and leaves its stacks; one that works is left alone."""

import subprocess
import sys
import time

from sr1_jax.training.watchdog import Watchdog

HANGS = """
import sys, threading
from pathlib import Path
from sr1_jax.training.watchdog import Watchdog

def waits_for_an_answer_that_never_comes():
    threading.Event().wait()

with Watchdog(float(sys.argv[2]), Path(sys.argv[1])) as watchdog:
    threading.Thread(target=waits_for_an_answer_that_never_comes, daemon=True).start()
    watchdog.finished()
    threading.Event().wait()
"""


def test_a_process_that_hangs(tmp_path):
    (tmp_path / "stacks-0.txt").write_text("of before\n")
    ended = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path), "1"], timeout=120)
    assert ended.returncode == 1
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert stacks.startswith("of before\n") and "Timeout" in stacks
    assert "waits_for_an_answer_that_never_comes" in stacks  # every thread, not only the main one


def test_one_that_goes_on(tmp_path):
    with Watchdog(1.0, tmp_path) as watchdog:
        for _ in range(4):
            time.sleep(0.4)
            watchdog.finished()
    time.sleep(1.2)  # nothing is left that would end this process
    assert list(tmp_path.iterdir()) == []


def test_off(tmp_path):
    with Watchdog(0, tmp_path / "none") as watchdog:
        watchdog.finished()
    assert not (tmp_path / "none").exists()

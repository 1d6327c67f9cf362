"""What Weights & Biases is told, by a stand-in for its package."""

import sys
import types

import pytest

from sr1_jax.evaluation.wandb_board import WandbBoard, check_wandb


@pytest.fixture
def calls(monkeypatch):
    """All calls of the stand-in, in order."""
    calls = []

    class Run:
        def define_metric(self, name, *, step_metric):
            calls.append(("define_metric", name, step_metric))

        def log(self, values):
            calls.append(("log", values))

        def finish(self):
            calls.append(("finish",))

    def init(**given):
        calls.append(("init", given))
        return Run()

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_a_run_is_told_and_taken_up_by_its_workdir(calls, tmp_path):
    for start, place in ((1, "here"), (2, "elsewhere")):
        if start == 2:  # the folder is opened on another machine
            (tmp_path / "here").rename(tmp_path / "elsewhere")
        board = WandbBoard("searching", tmp_path / place / "mine", {"seed": 3})
        board.write(start, {"reward": 0.5})
        board.close()
    WandbBoard("searching", tmp_path / "other", {})
    opened = [call[1] for call in calls if call[0] == "init"]
    assert opened[0]["id"] == opened[1]["id"] != opened[2]["id"]
    assert (opened[0]["project"], opened[0]["name"]) == ("searching", "mine")
    assert opened[0]["config"] == {"seed": 3} and opened[0]["resume"] == "allow"
    assert calls[1:4] == [
        ("define_metric", "*", "step"), ("log", {"step": 1, "reward": 0.5}), ("finish",),
    ]  # fmt: skip


def test_a_missing_package_is_named_before_anything_is_done(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_wandb("")
    with pytest.raises(ValueError, match=r"log\.wandb='searching' needs .*sr1_jax\[wandb\]"):
        check_wandb("searching")

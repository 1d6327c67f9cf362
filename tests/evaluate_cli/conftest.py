"""The programs that evaluate and export, run on a stand-in for a run."""

import sys

import pytest
from evaluated import World

from sr1_jax import cli, evaluate


@pytest.fixture
def world(tmp_path, monkeypatch, make_trajectory, small_tokenizer):
    world = World(tmp_path, make_trajectory, small_tokenizer)
    monkeypatch.setattr(evaluate, "trained_policy", world.trained_policy)
    monkeypatch.setattr(evaluate, "check_base", lambda *arguments: None)
    monkeypatch.setattr(evaluate.methods, "make_engine", world.make_engine)
    monkeypatch.setattr(evaluate.task, "open_index", lambda *arguments: world.retriever)
    monkeypatch.setenv("COLUMNS", "80")
    return world


@pytest.fixture
def refused(world, monkeypatch, capsys):
    """Function of (program, argv) -> its one line on stderr; it must leave no trace."""
    monkeypatch.delenv("SR1_JAX_TRACEBACK", raising=False)

    def run(program, argv):
        before = sorted(world.folder.rglob("*"))
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_info:
            cli.run(program.main)
        error = capsys.readouterr().err
        assert exit_info.value.code == 2, error
        assert error.startswith("error: ") and error.count("\n") == 1
        assert sorted(world.folder.rglob("*")) == before and world.loaded == []
        return error

    return run

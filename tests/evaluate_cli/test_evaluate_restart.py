"""Evaluations that were killed, and started again."""

import json
import re
import shutil

import pytest

from sr1_jax import evaluate

# Killed, and started again


def test_a_restart_asks_no_question_twice(world, capsys):
    world.checkpoints(2)
    arguments = ("--greedy=false", "--samples=3")
    options = dict(questions="{tmp}/nq.jsonl,{tmp}/hp.jsonl", method="search,rag")
    world.evaluate(*arguments, **options)
    folder = world.workdir / "eval"
    want = contents(folder)
    unbroken, world.finished = world.finished, []
    shutil.rmtree(folder)
    for kill_after in (0, 7, 8, 24, 40, 55):  # within questions and at their ends
        world.kill_after = kill_after
        with pytest.raises(KeyboardInterrupt):
            world.evaluate(*arguments, **options)
    world.kill_after = None
    capsys.readouterr()
    world.evaluate(*arguments, **options)
    assert "answers are there from an earlier start." in capsys.readouterr().err
    assert sorted(world.finished) == sorted(unbroken)
    assert contents(folder) == want
    assert not [path for path in folder.iterdir() if re.search("partial|under_way", path.name)]
    # What is over is asked again.
    world.evaluate(*arguments, **options)
    assert len(world.finished) == 2 * len(unbroken) and contents(folder) == want


def contents(folder):
    """All results less seconds and speed; what was taken up counts as speed."""

    def without_speed(data):
        if isinstance(data, dict):
            return {
                key: without_speed(value)
                for key, value in data.items()
                if key != "seconds" and not key.startswith("rollout/")
            }
        return data

    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            found[path.name] = without_speed(json.loads(path.read_text()))
        else:
            found[path.name] = path.read_bytes()
    return found


def test_a_restart_may_search_elsewhere(world, capsys):
    """By more threads, say, or at another address of the same server: the answers are the same."""
    world.checkpoints(2)
    world.kill_after = 5
    with pytest.raises(KeyboardInterrupt):
        world.evaluate("--config.environment.options.search.threads=2")
    world.kill_after = None
    found = world.evaluate("--config.environment.options.search.threads=5")
    assert "5 of 8 answers are there from an earlier start." in capsys.readouterr().err
    assert len(world.finished) == 8 and len(found) == 1


def test_other_weights_begin_anew(world, capsys, monkeypatch):
    world.checkpoints(2)
    world.kill_after = 5
    with pytest.raises(KeyboardInterrupt):
        world.evaluate()
    world.kill_after, asked = None, len(world.finished)
    monkeypatch.setattr(evaluate, "params_fingerprint", lambda params: "other")
    world.evaluate()
    assert "answers that were given with other weights: they are not taken up." in (
        capsys.readouterr().err
    )
    assert len(world.finished) == asked + 8


def test_golden_answers_are_those_of_today(world):
    world.checkpoints(2)
    world.kill_after = 5
    with pytest.raises(KeyboardInterrupt):
        world.evaluate()
    world.kill_after = None
    path = world.folder / "nq.jsonl"
    path.write_text(path.read_text().replace('"Bo"', '"Al"'))
    ((_, result),) = world.evaluate().items()
    assert result["em"] == 0.0

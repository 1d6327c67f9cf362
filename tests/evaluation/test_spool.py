"""Partial results: appended, cut short, of other circumstances, of several processes."""

import subprocess
import sys

import pytest

from sr1_jax.evaluation.spool import Spool, delete_partial, read_kept

NAME = "nq\x1b[red].search.step_2.greedy"  # has what patterns of file names know
FACTS = {"weights": "1a", "settings": {"rollout.passages": 3, "protocol.chat": True}}


@pytest.fixture
def made(make_trajectory):
    return [make_trajectory(question_id=f"q{n}", sample=n % 2, answer=f"a{n}") for n in range(4)]


def write(folder, trajectories, *, process=0, facts=FACTS, start=0.0):
    with Spool(folder, NAME, facts, process) as spool:
        for number, trajectory in enumerate(trajectories, start=1):
            spool.add(trajectory, start + number)


def kept(folder, facts=FACTS):
    found = read_kept(folder, NAME, facts)
    return {key: trajectory.answer for key, trajectory in found.trajectories.items()}


def test_what_was_added_is_there(tmp_path, made):
    assert read_kept(tmp_path / "none", NAME, FACTS).trajectories == {}
    write(tmp_path / "eval", made[:2])
    write(tmp_path / "eval", made[2:], start=10.0)
    assert kept(tmp_path / "eval") == {
        ("q0", 0): "a0", ("q1", 1): "a1", ("q2", 0): "a2", ("q3", 1): "a3",
    }  # fmt: skip
    assert read_kept(tmp_path / "eval", NAME, FACTS).seconds == 12.0


def test_a_line_is_written_when_add_returns(tmp_path, made):
    with Spool(tmp_path, NAME, FACTS, 0) as spool:
        spool.add(made[0], 1.0)
        assert kept(tmp_path) == {("q0", 0): "a0"}


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_a_line_that_was_cut_short_is_dropped(tmp_path, made, cut):
    write(tmp_path, made[:2])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert kept(tmp_path) == {("q0", 0): "a0"}
    assert read_kept(tmp_path, NAME, FACTS).problems == ()
    write(tmp_path, made[2:3])
    assert kept(tmp_path) == {("q0", 0): "a0", ("q2", 0): "a2"}


def test_a_first_line_that_was_cut_short(tmp_path, made):
    write(tmp_path, [])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert kept(tmp_path) == {}
    write(tmp_path, made[:1])
    assert kept(tmp_path) == {("q0", 0): "a0"}


def test_a_damaged_line_is_named_and_its_question_asked_again(tmp_path, made):
    write(tmp_path, made[:3])
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b'{"seconds": 1', *lines[3:]]))
    assert kept(tmp_path) == {("q0", 0): "a0", ("q2", 0): "a2"}
    (problem,) = read_kept(tmp_path, NAME, FACTS).problems
    assert problem.endswith(".partial_0.jsonl:3 is damaged: that question is asked again.")


def test_answers_of_other_circumstances_are_not_taken_up(tmp_path, made):
    write(tmp_path, made[:2])
    other = {"weights": "2b", "settings": {"rollout.passages": 1, "protocol.chat": True}}
    found = read_kept(tmp_path, NAME, other)
    assert found.trajectories == {}
    (problem,) = found.problems
    assert "has 2 answers that were given with other weights, rollout.passages" in problem
    write(tmp_path, made[2:3], facts=other)
    assert kept(tmp_path, other) == {("q2", 0): "a2"} and kept(tmp_path) == {}


def test_all_processes_are_read_and_deleted(tmp_path, made):
    for process, trajectory in enumerate(made):
        write(tmp_path, [trajectory], process=process)
    (tmp_path / f"{NAME}.json").write_text("{}")
    (tmp_path / f"{NAME}.partial_x.jsonl").write_text("no number")
    assert len(kept(tmp_path)) == 4
    delete_partial(tmp_path, NAME)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{NAME}.json", f"{NAME}.partial_x.jsonl",
    ]  # fmt: skip


def test_two_evaluations_never_write_one_file(tmp_path, made):
    with Spool(tmp_path, NAME, FACTS, 0) as spool:
        spool.add(made[0], 1.0)
        with pytest.raises(ValueError, match="the same evaluation is under way already"):
            Spool(tmp_path, NAME, FACTS, 0)
        with Spool(tmp_path, NAME, FACTS, 1):
            pass
        spool.add(made[1], 2.0)
    assert len(kept(tmp_path)) == 2


def test_a_killed_process_holds_no_file(tmp_path):
    code = (
        "import os, pathlib, signal, sys; from sr1_jax.evaluation.spool import Spool; "
        f"spool = Spool(pathlib.Path(sys.argv[1]), {NAME!r}, {FACTS!r}, 0); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    with Spool(tmp_path, NAME, FACTS, 0):
        pass

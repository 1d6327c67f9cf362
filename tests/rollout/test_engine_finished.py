"""What the engine tells while it runs, and episodes that it is told to leave out."""

import pytest


def key(trajectory):
    return trajectory.question_id, trajectory.sample


def test_each_trajectory_is_told_once_as_soon_as_it_is_over(make_engine, questions, assert_same):
    engine, told = make_engine(slots=2), []
    running = []

    def finished(trajectory, question):
        assert question.id == trajectory.question_id
        assert trajectory.reward == 0.0 and trajectory.segment_rewards is None
        told.append(trajectory)
        running.append(engine.stats["decode_calls"])

    run = engine.run(questions[:5], seed=1, samples=2, finished=finished)
    assert sorted(map(key, told)) == sorted(map(key, run)) and len(run) == 10
    for trajectory in run:
        (same,) = (t for t in told if key(t) == key(trajectory))
        assert same.ids is trajectory.ids
    # Two slots: the first was told long before the last.
    assert running == sorted(running) and running[0] < running[-1]


def test_an_error_in_the_listener_ends_the_run(make_engine, questions):
    def finished(trajectory, question):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        make_engine().run(questions[:2], finished=finished)


def test_skipped_episodes_change_no_other(make_engine, questions, assert_same):
    whole = make_engine().run(questions[:6], seed=1, samples=3)
    skip = {("q0", 1), ("q3", 0), ("q3", 1), ("q3", 2), ("q5", 2), ("unknown", 0)}
    part = make_engine().run(questions[:6], seed=1, samples=3, skip=skip)
    assert_same(part, [t for t in whole if key(t) not in skip])
    assert [key(t) for t in part] == [key(t) for t in whole if key(t) not in skip]


def test_passages_of_the_prompt_are_kept(make_engine, questions):
    engine = make_engine(template="compact_rag", max_searches=0, passages=2)
    for trajectory in engine.run(questions[:3]):
        asked = next(q["question"].strip() for q in questions if q["id"] == trajectory.question_id)
        assert [p.id for p in trajectory.prompt_passages] == [f"{asked}-1", f"{asked}-2"]
        assert trajectory.searches == trajectory.passages == []
    assert all(t.prompt_passages == [] for t in make_engine().run(questions[:3]))

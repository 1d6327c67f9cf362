"""Groups of equal rewards are replaced, boundedly, and nothing depends on chance."""

import pytest

from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionStream
from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.train import train
from sr1_jax.training.dynamic_sampling import is_degenerate, sample_groups


@pytest.fixture
def world(make_trajectory):
    """Function of (questions, useful ids) -> (stream, roll_out, calls): two samples a question,
    of different rewards where it is useful."""

    def make(count, useful):
        questions = [Question(str(i), f"Question {i}?", ("x",)) for i in range(count)]
        calls = []

        def roll_out(asked):
            calls.append([question.id for question in asked])
            return [
                [
                    make_trajectory(question_id=q.id, sample=0, reward=0.0),
                    make_trajectory(question_id=q.id, sample=1, reward=float(useful(q.id))),
                ]
                for q in asked
            ]

        return QuestionStream(questions, seed=1), roll_out, calls

    return make


def kept_ids(sampled):
    return [sampled.questions[number].id for number in sampled.kept]


def test_without_extra_rounds_every_question_is_kept_in_order(world):
    stream, roll_out, calls = world(20, lambda _: False)
    sampled = sample_groups(roll_out, stream, count=6)
    assert calls == [kept_ids(sampled)] and stream.position == 6
    assert [t.question_id for t in sampled.trained] == [i for i in calls[0] for _ in range(2)]
    assert sampled.metrics == {
        "groups/degenerate": 1,
        "groups/degenerate_kept": 1,
        "groups/rollouts": 1,
        "groups/questions": 6,
    }


def test_degenerate_groups_are_replaced_by_later_questions(world):
    odd = lambda name: int(name) % 2 == 1  # noqa: E731
    stream, roll_out, calls = world(1000, odd)
    sampled = sample_groups(roll_out, stream, count=16, extra_rounds=20)
    kept = kept_ids(sampled)
    assert len(kept) == len(set(kept)) == 16 and all(map(odd, kept))
    # The first useful ones of all that were drawn, in their order.
    drawn = [name for call in calls for name in call]
    assert kept == [name for name in drawn if odd(name)][:16]
    assert sampled.metrics["groups/degenerate_kept"] == 0
    share = sum(not odd(name) for name in drawn) / len(drawn)
    assert sampled.metrics["groups/degenerate"] == pytest.approx(share)
    assert sampled.metrics["groups/rollouts"] == len(calls) > 1
    assert sampled.metrics["groups/questions"] == len(drawn) == stream.position
    assert all(len(call) <= 16 for call in calls)


def test_no_more_is_drawn_than_is_likely_to_be_needed(world):
    stream, roll_out, calls = world(1000, lambda _: True)
    sample_groups(roll_out, stream, count=8, extra_rounds=5)
    assert len(calls) == 1
    first = set()
    # Six of the first eight are useful; two are missing: 2 / (6 / 8), rounded up, is 3.
    stream, roll_out, calls = world(1000, lambda name: name not in first)
    first |= {question.id for question in QuestionStream.take(world(1000, None)[0], 2)}
    sample_groups(roll_out, stream, count=8, extra_rounds=5)
    assert [len(call) for call in calls] == [8, 3]


def test_the_bound_holds_and_dropped_groups_fill_up(world):
    useful = set()
    stream, roll_out, calls = world(1000, lambda name: name in useful)
    useful.add(world(1000, None)[0].take(10)[9].id)
    sampled = sample_groups(roll_out, stream, count=4, extra_rounds=2)
    assert [len(call) for call in calls] == [4, 4, 4]
    # The useful one of the third rollout, and the first three of the others.
    assert kept_ids(sampled) == [*calls[0][:3], *useful]
    assert sampled.metrics["groups/degenerate_kept"] == 0.75
    assert sampled.metrics["groups/degenerate"] == pytest.approx(11 / 12)


def test_a_question_is_not_rolled_out_again_in_a_later_round(world):
    stream, roll_out, calls = world(5, lambda _: False)
    sampled = sample_groups(roll_out, stream, count=4, extra_rounds=3)
    # Only one of the next four is new; after that none is, and the rounds end.
    assert [len(call) for call in calls] == [4, 1]
    assert len(sampled.kept) == 4 and sampled.metrics["groups/rollouts"] == 2


def test_what_is_degenerate(make_trajectory):
    def group(*outcomes):
        return [make_trajectory(reward=reward, trains=trains) for reward, trains in outcomes]

    right, wrong, masked = (1.0, True), (0.0, True), (0.0, False)
    assert not is_degenerate(group(right, wrong))
    assert is_degenerate(group(right, right))
    # What does not train teaches nothing, whatever it would have earned.
    assert is_degenerate(group(right, masked))
    assert is_degenerate(group(masked, masked))
    # The reward is what it trains on, penalties included.
    assert not is_degenerate(group(wrong, (-0.5, True)))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_taken_up_again_the_same_questions_follow(derived, tmp_path, same_run):
    """What a step consumes depends on its rewards; the position is part of the checkpoint, and so
    is the KL coefficient."""
    derived.dynamic_sampling_rounds = 2
    derived.learner.algorithm = "rloo"
    derived.learner.kl_target = 1e-4
    derived.learner.kl_horizon = 80
    train(derived, tmp_path / "whole")
    rows = read_metrics(tmp_path / "whole")
    assert any(row["groups/rollouts"] > 1 for row in rows)
    assert len({row["kl_coefficient"] for row in rows}) > 1
    for steps in (2, 4):
        derived.steps = steps
        train(derived, tmp_path / "run")
    same_run(tmp_path / "run", tmp_path / "whole", steps=(2, 4))

"""Trajectories through JSON and back, bit for bit."""

import dataclasses
import json

import numpy as np
import pytest

from sr1_jax.environment.search_tool import SearchRecord
from sr1_jax.environment.trajectory import Call
from sr1_jax.evaluation.plain_trajectory import from_plain, to_plain
from sr1_jax.retrieval.base import Passage


def through_json(trajectory):
    return from_plain(json.loads(json.dumps(to_plain(trajectory))))


def assert_equal(got, want):
    for field in dataclasses.fields(want):
        ours, theirs = getattr(got, field.name), getattr(want, field.name)
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype and ours.flags.writeable
        else:
            assert ours == theirs and type(ours) is type(theirs), field.name


@pytest.fixture
def trajectory(make_trajectory):
    passages = [[Passage("1", "A", "é \ud83d \x00", float(np.float32(0.1)))], []]
    record = SearchRecord(["q", ""], passages)
    return make_trajectory(
        ids=range(4),
        mask=[0, 1, 1, 0],
        logp=np.array([0, -0.1, -np.inf, np.nan], np.float32),
        answer="Bo\n",
        calls=[Call("search", "q", record, 0), Call("calc", "1+1", 2, 1)],
        searches=record.queries,
        passages=passages,
        golden_answers=("a", "b"),
        rewards={"em": 1.0},
        reward=1.0,
    )


def test_there_and_back(trajectory):
    again = through_json(trajectory)
    assert_equal(again, trajectory)
    assert isinstance(again.calls[0].record, SearchRecord)
    assert isinstance(again.passages[0][0], Passage)


def test_mappings_keep_the_kind_of_their_keys(trajectory):
    odd = dataclasses.replace(trajectory, rewards={0: "malformed", "x": (1, [2])})
    assert through_json(odd).rewards == {0: "malformed", "x": (1, [2])}


def test_rollouts_come_back_exactly(make_trajectory):
    unrewarded = make_trajectory(segment_rewards=None)
    assert_equal(through_json(unrewarded), unrewarded)


class Foreign:
    """A record of a user's own tool."""


def test_the_record_of_a_users_own_tool_is_left_out(trajectory):
    calls = [Call("x", "y", Foreign(), 0), *trajectory.calls, Call("x", "y", [Foreign()], 2)]
    again = through_json(dataclasses.replace(trajectory, calls=calls))
    assert again.calls == [calls[0]._replace(record=None), *calls[1:3], Call("x", "y", None, 2)]


@pytest.mark.parametrize(
    "made",
    ["os:system", "sr1_jax.cli:run", "sr1_jax.evaluation.plain_trajectory:base64", "sr1_jax:x"],
)
def test_nothing_but_data_is_made_from_a_file(trajectory, made):
    data = to_plain(trajectory)
    data["answer"] = {"kind": "object", "of": made, "data": {}}
    with pytest.raises(ValueError, match="no trajectory"):
        from_plain(data)


@pytest.mark.parametrize("data", [{}, {"x": 1}, {"answer": {"kind": "array"}}, {"answer": {}}])
def test_what_is_no_trajectory(data):
    with pytest.raises(ValueError, match="no trajectory"):
        from_plain(data)

"""Rows that hold common starts once: a step is that of a row for each trajectory."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_runs import LENGTH, batch_of
from test_learner import DISPLACEMENT, GRPO, GSPO
from trees import assert_learned_alike, assert_trees_close

from sr1_jax.models.attention import _before_its_end, _library_attention, causal_by_matmul
from sr1_jax.rl.micro_batches import (
    micro_batch_shapes,
    padding_share,
    plan_micro_batches,
    plan_packed,
    plan_shared,
    shared_share,
)
from sr1_jax.rl.settings import default_config
from sr1_jax.rl.shared_prefixes import common_start, groups_together, tokens_of_trees

SHARED = dict(packing=True, share_prefixes=True, row_lengths=(32, 48), micro_batch=2)
ONE, ALL = (1, 1, 1), (2, 2, 2)
slow = pytest.mark.slow


def alike(trajectories):
    """The samples of a question start alike: with its prompt, with all of the first one's tokens
    but its last few, or they are the first one again."""
    made = []
    for first in range(0, len(trajectories), 4):
        model, *others = trajectories[first : first + 4]
        made.append(model)
        for kept, other in zip((model.prompt_length, len(model.ids) - 3, len(model.ids)), others):
            # Its mask, log-probabilities and rewards are its own: a token may train in one alone.
            ids = np.concatenate([model.ids[:kept], other.ids[kept:]])[: len(other.ids)]
            made.append(dataclasses.replace(other, ids=ids))
    return made


@pytest.fixture(scope="module")
def batch(stale):
    """One trajectory trains on nothing."""
    rows = alike(stale)
    return batch_of([*rows[:5], dataclasses.replace(rows[5], trains=False), *rows[6:]])


@st.composite
def batches(draw):
    """ids_BT of three tokens, trains_BT and group_B: many common starts."""
    count, length = draw(st.integers(1, 12)), 10
    numbers = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    ids_BT = np.array([draw(numbers) for _ in range(count)], np.int32)
    group_B = np.array([draw(st.integers(0, 2)) for _ in range(count)], np.int32)
    for row in range(1, count):  # what an earlier one starts with
        other, kept = draw(st.integers(0, row - 1)), draw(st.integers(0, length))
        ids_BT[row, :kept] = ids_BT[other, :kept]
    trains = st.lists(st.booleans(), min_size=length, max_size=length)
    trains_BT = np.array([draw(trains) for _ in range(count)], np.float32)
    return ids_BT, trains_BT, group_B


@settings(max_examples=60)
@given(made=batches(), size=st.integers(1, 3), data=st.data())
def test_each_token_sees_what_stands_before_it_in_its_trajectory(made, size, data):
    ids_BT, trains_BT, group_B = made
    rows = np.array(data.draw(st.permutations(range(len(ids_BT)))))[: len(ids_BT) // 2 + 1]
    plan = plan_shared(trains_BT, rows, ids_BT, group_B, size=size, lengths=(10, 15, 24))
    wanted = {row: np.flatnonzero(trains_BT[row]).max() + 1 for row in rows if trains_BT[row].any()}
    found, tokens = [], 0
    for layout, length, trained in plan:
        shape = layout.source_RL.shape
        assert shape == (size, length) and len(layout.rows_N) == len(rows)
        ids_NT = np.r_[ids_BT, np.zeros((1, 10), np.int32)][layout.rows_N]
        ids_RL = np.asarray(tokens_of_trees(jnp.asarray(ids_NT), layout))
        trained_RL = np.zeros(shape, bool)
        for number, row in enumerate(layout.rows_N):
            places = layout.place_NT[number]
            if row == len(ids_BT):
                assert np.all(places == size * length)
                continue
            found.append(row)
            end = wanted[row]
            assert np.all(places[end:] == size * length)
            at = np.unravel_index(places[:end], shape)
            assert len(set(at[0])) == 1
            np.testing.assert_array_equal(ids_RL[at], ids_BT[row, :end])
            np.testing.assert_array_equal(layout.trees.position_BT[at], np.arange(end))
            np.testing.assert_array_equal(layout.trees.parent_BT[at][1:], at[1][:-1])
            for position in range(end):
                index = at[1][position]
                sees = np.flatnonzero(layout.trees.end_BT[at[0][0]][: index + 1] > index)
                np.testing.assert_array_equal(sees, at[1][: position + 1])
            trained_RL[at] |= trains_BT[row, :end] != 0
        assert trained_RL.sum(axis=1).max() <= trained <= length
        np.testing.assert_array_equal(layout.wanted_RL != 0, trained_RL)
        tokens += (layout.source_RL < len(rows)).sum()
    assert sorted(found) == sorted(wanted)
    assert padding_share(trains_BT, plan) == pytest.approx(
        1 - tokens / (len(plan) * size * plan[0].length)
    )
    packed = plan_packed(trains_BT, rows, size=size, lengths=(10, 15, 24))
    assert sum(part.length for part in plan) <= sum(part.length for part in packed)
    if wanted:
        total = sum(wanted.values())
        assert shared_share(trains_BT, plan) == pytest.approx(1 - tokens / total)


def test_what_a_group_starts_with_stands_once():
    ids_BT = np.array([[1, 2, 3, 4], [1, 2, 5, 0], [1, 2, 3, 6], [1, 2, 3, 4]])
    trains_BT = np.array([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
    one = np.zeros(4, np.int32)
    (only,) = plan_shared(trains_BT, np.arange(4), ids_BT, one, size=1, lengths=(4, 6, 9))
    assert only.length == 6 and only.trained == 4
    np.testing.assert_array_equal(only.rows.rows_N, [0, 3, 2, 1])
    np.testing.assert_array_equal(only.rows.trees.parent_BT, [[0, 0, 1, 2, 2, 1]])
    np.testing.assert_array_equal(only.rows.trees.end_BT, [[6, 6, 5, 4, 5, 6]])
    assert shared_share(trains_BT, [only]) == pytest.approx(1 - 6 / 15)
    # Of two questions: nothing is shared, and three of a group's trajectories fill a row of six.
    two = np.array([0, 0, 1, 1])
    plan = plan_shared(trains_BT, np.arange(4), ids_BT, two, size=1, lengths=(6,))
    assert len(plan) == 2 and shared_share(trains_BT, plan) == pytest.approx(1 - 10 / 15)
    with pytest.raises(ValueError, match=r"of 4 tokens fits no packed row: they hold \(2, 3\)"):
        plan_shared(trains_BT, np.arange(4), ids_BT, one, size=1, lengths=(2, 3))


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([1], [2], 0), ([], [1], 0), ([5], [5], 1)],
)
def test_common_start(a, b, shared):
    assert common_start(np.array(a), np.array(b)) == shared


def test_groups_stay_together_in_the_order_of_their_first():
    got = groups_together(np.array([5, 0, 3, 1, 4, 2]), np.array([0, 0, 1, 1, 2, 2]))
    np.testing.assert_array_equal(got, [5, 4, 0, 1, 3, 2])


def test_attention_over_trees_by_both_kernels():
    rng = np.random.default_rng(0)
    q_BTHE, k_BTKE, v_BTKE = (rng.normal(size=(2, 6, heads, 4)) for heads in (4, 2, 2))
    end_BT = np.array([[6, 4, 3, 4, 6, 6], [2, 2, 6, 6, 5, 6]])
    want = np.zeros_like(q_BTHE)
    for row, index, head in np.ndindex(2, 6, 4):
        seen = [t for t in range(index + 1) if index < end_BT[row, t]]
        scores = k_BTKE[row, seen, head // 2] @ q_BTHE[row, index, head] / 2
        weights = np.exp(scores) / np.exp(scores).sum()
        want[row, index, head] = weights @ v_BTKE[row, seen, head // 2]
    for attend in (causal_by_matmul, _library_attention):
        got = attend(*map(jnp.float32, (q_BTHE, k_BTKE, v_BTKE)), end_BT, may_see=_before_its_end)
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        pytest.param(ONE, {}, id="ppo"),
        pytest.param(ONE, GSPO, id="gspo"),
        pytest.param(ALL, GRPO, id="grpo-mesh"),
        pytest.param(ALL, {}, id="ppo-mesh", marks=slow),
        pytest.param((8, 1, 1), {}, id="ppo-data", marks=slow),
        pytest.param(ONE, dict(old_logp="trainer"), id="trainer", marks=slow),
        pytest.param(ONE, DISPLACEMENT, id="displacement", marks=slow),
        pytest.param(ONE, dict(mask_advantages=False), id="no-mask", marks=slow),
    ],
)
def test_a_step_is_the_same(learner_run, batch, mesh, changes):
    shared = dict(changes) | SHARED | dict(micro_batch=mesh[0] * mesh[1] * 2)
    plain, run = learner_run(**changes), learner_run(mesh, **shared)
    after, metrics = plain.step(batch, plain.moved)
    after_shared, metrics_shared = run.step(batch, run.moved)
    assert metrics_shared.pop("shared_share") > 0.2
    del metrics["padding_share"], metrics_shared["padding_share"]
    assert metrics_shared == pytest.approx(metrics, rel=2e-5, abs=2e-6)
    assert metrics["policy/gradient_norm"] > 0.01
    assert_learned_alike(after_shared, after)


@slow
def test_two_mini_batches_scored_by_the_trainer(learner_run, batch, monkeypatch):
    """As without sharing, once both shuffle whole questions."""
    changes = dict(minibatch_size=8, epochs=2, old_logp="trainer")
    plain, run = learner_run(**changes), learner_run(**changes | SHARED)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: _WholeQuestions(batch))
    (after, metrics), (got, got_metrics) = (each.step(batch, each.moved) for each in (plain, run))
    for key in ("policy/loss", "policy/gradient_norm", "critic/loss", "kl"):
        assert got_metrics[key] == pytest.approx(metrics[key], rel=1e-4), key
    for name in ("policy", "critic"):
        assert_trees_close(getattr(got, name).params, getattr(after, name).params, atol=1e-5)


class _WholeQuestions:
    """Permutes as a run with shared prefixes does."""

    def __init__(self, batch):
        self._batch, self._rng = batch, np.random.Generator(np.random.PCG64(7))

    def permutation(self, rows):
        return groups_together(self._rng.permutation(rows), self._batch.group_B)


def test_mini_batches_are_of_whole_questions(learner_run, batch, monkeypatch):
    """Two of 16 trajectories of four questions each, in every order of seeds."""
    run = learner_run(**GRPO | SHARED | dict(minibatch_size=8, skip_zero_advantages=False))
    seen = []
    update = run.learner._update_policy

    def spy(state, batch, plan, *rest, **more):
        seen.append(np.concatenate([one.rows.rows_N for one in plan]))
        return update(state, batch, plan, *rest, **more)

    monkeypatch.setattr(run.learner, "_update_policy", spy)
    orders = set()
    for seed in range(4):
        seen.clear()
        run.step(batch, seed=seed)
        questions = [sorted(set(batch.group_B[rows[rows < 16]])) for rows in seen]
        assert len(questions) == 2 and sorted(itertools.chain(*questions)) == [0, 1, 2, 3]
        orders.add(tuple(map(tuple, questions)))
    assert len(orders) > 1


def test_where_no_token_trains_nothing_moves(learner_run, stale):
    run = learner_run(**SHARED)
    nothing = batch_of([dataclasses.replace(t, trains=False) for t in stale])
    after, metrics = run.step(nothing)
    assert metrics["padding_share"] == 1 and metrics["shared_share"] == 0
    assert metrics["policy/loss"] == 0
    assert_trees_close(after.policy.params, run.start.policy.params, rtol=0)


def test_every_micro_batch_has_a_listed_shape():
    config = default_config()
    config.update(SHARED, length_buckets=(LENGTH,), minibatch_size=8)
    shapes = {
        (part.length, part.trained): jax.tree.map(lambda x: (x.shape, x.dtype), part.rows)
        for part in micro_batch_shapes(config, 16)
    }
    rng = np.random.default_rng(0)
    group_B, met = np.repeat(np.arange(4), 4), set()
    for share in np.linspace(0, 1, 20):
        trains_BT = rng.random((16, LENGTH)) < share
        ids_BT = rng.integers(0, 2, (16, LENGTH))
        for part in plan_micro_batches(
            trains_BT, np.arange(8), config, ids_BT=ids_BT, group_B=group_B
        ):
            got = jax.tree.map(lambda x: (x.shape, x.dtype), part.rows)
            assert got == shapes[part.length, part.trained]
            met.add((part.length, part.trained))
    assert len(met) > 3


def test_it_is_about_packed_rows(rl_policy, learner_run):
    with pytest.raises(
        ValueError, match=r"share_prefixes=True is about packed rows: set learner\.p"
    ):
        learner_run(**GRPO | dict(share_prefixes=True))


def test_values_and_logits_of_a_tree_are_those_of_its_sequences(rl_policy, rl_critic):
    ids_BT = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 7, 7], [1, 6, 3, 4, 5]])
    every = np.ones((3, 5))
    (only,) = plan_shared(every, np.arange(3), ids_BT, np.zeros(3, int), size=1, lengths=(12,))
    trees = jax.tree.map(jnp.asarray, only.rows.trees)
    ids_RL = tokens_of_trees(jnp.asarray(ids_BT)[only.rows.rows_N], only.rows)
    for model in (rl_policy, rl_critic):
        got = nnx.jit(lambda model: model(ids_RL, trees))(model)[0]
        want = nnx.jit(lambda model: model(jnp.asarray(ids_BT)))(model)
        for number, row in enumerate(only.rows.rows_N):
            np.testing.assert_allclose(got[only.rows.place_NT[number]], want[row], atol=1e-5)

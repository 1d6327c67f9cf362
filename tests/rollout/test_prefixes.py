"""Which prompt tokens are shared: by hand, and against a search over all slots."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr1_jax.rollout.prefixes import Share, plan_shares

SYSTEM = list(range(100, 120))


def caches(*rows, width=60):
    cached_SX = np.full((len(rows), width), -1, np.int32)
    for slot, ids in enumerate(rows):
        cached_SX[slot, : len(ids)] = ids
    return cached_SX, np.array([len(ids) for ids in rows], np.int32)


def plan(rows, newcomers, parts=None):
    return plan_shares(*caches(*rows), newcomers, parts or [0] * len(rows))


def test_an_empty_cache_is_filled_in_waves():
    """One prompt first, those that begin like it next, then the members of their groups."""
    one, two = [*SYSTEM, *range(20)], [*SYSTEM, *range(50, 70)]
    got = plan([[]] * 4, [(0, one), (1, one), (2, two), (3, two)])
    assert got == [Share(0, None, 0), Share(1, 0, 40), Share(1, 0, 20), Share(2, 2, 40)]


def test_what_the_own_slot_holds_is_kept():
    assert plan([[*SYSTEM, 1, 2, 3]], [(0, [*SYSTEM, 5, 6])]) == [Share(0, None, 20)]


def test_a_copy_has_to_be_worth_it():
    held = [*SYSTEM, *range(8)]
    for more, want in [(7, Share(0, None, 20)), (8, Share(0, 1, 28))]:
        assert plan([SYSTEM, held], [(0, held[: 20 + more])]) == [want]


def test_stale_tokens_do_not_count():
    cached_SX, length_S = caches(SYSTEM, [])
    length_S[0] = 5
    assert plan_shares(cached_SX, length_S, [(0, SYSTEM)], [0, 0]) == [Share(0, None, 5)]


def test_parts_do_not_share():
    got = plan([SYSTEM, [], []], [(1, SYSTEM), (2, SYSTEM)], parts=[0, 1, 1])
    assert got == [Share(0, None, 0), Share(1, 1, 20)]


def test_a_slot_that_is_taken_over_can_still_be_read():
    other = list(range(200, 230))
    got = plan([SYSTEM, []], [(0, other), (1, SYSTEM)])
    assert got == [Share(0, None, 0), Share(0, 0, 20)]


def test_prompts_of_one_token():
    assert plan([[1, 2], []], [(0, []), (1, [])]) == [Share(0, None, 0)] * 2


@given(st.data())
def test_following_the_plan_gives_every_slot_its_prompt(data):
    """A cache of plain lists, with the copies made as the plan says."""
    ids = st.lists(st.integers(0, 1), max_size=30)
    rows = data.draw(st.lists(ids, min_size=1, max_size=5))
    slots = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))
    parts = data.draw(st.lists(st.integers(0, 1), min_size=len(rows), max_size=len(rows)))
    newcomers = [(slot, data.draw(ids)) for slot in slots]
    shares = plan(rows, newcomers, parts)
    held = [list(row) for row in rows]
    for wave in range(1 + max((share.wave for share in shares), default=0)):
        now = [(new, share) for new, share in zip(newcomers, shares) if share.wave == wave]
        before = [list(row) for row in held]
        for (slot, prompt), share in now:
            source = slot if share.source is None else share.source
            assert parts[source] == parts[slot]
            held[slot] = before[source][: share.length]
            assert held[slot] == prompt[: share.length] and len(held[slot]) == share.length
        for (slot, prompt), _ in now:
            held[slot] = list(prompt)
    assert all(held[slot] == prompt for slot, prompt in newcomers)


@pytest.mark.parametrize("members", [1, 5])
def test_a_group_computes_its_prompt_once(members):
    prompts = [[*SYSTEM, *range(300 + 20 * g, 320 + 20 * g)] for g in range(3)]
    newcomers = [(slot, prompts[slot // members]) for slot in range(3 * members)]
    shares = plan([[]] * len(newcomers), newcomers)
    computed = sum(len(ids) - share.length for (_, ids), share in zip(newcomers, shares))
    assert computed == 20 + 3 * 20

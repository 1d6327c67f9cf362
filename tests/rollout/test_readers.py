"""Which slots readers get: a run never stands still."""

from types import SimpleNamespace

import numpy as np
import pytest

from sr1_jax.rollout.readers import Readers, Reading


def reading(slot):
    return Reading(f"reader of {slot}", f"asking {slot}", SimpleNamespace(key=slot))


def test_free_slots_first():
    readers = Readers(6)
    for slot in (0, 1, 2):
        readers.add(reading(slot))
    free = [3, 5]
    assert readers.seat(free, running=False) == [(3, reading(0)), (5, reading(1))]
    assert free == [] and readers.seated == 2
    assert readers.seat([], running=True) == []  # those two run: the third can wait
    assert readers.leave(3) == reading(0) and readers.leave(3) is None
    assert readers.seat([3, 4], running=True) == [(3, reading(2))]
    assert readers.leave(0) is None


def test_a_reader_takes_the_slot_of_who_asked_only_where_nothing_runs():
    readers = Readers(2)
    readers.add(reading(1))
    readers.add(reading(0))
    assert readers.seat([], running=True) == []
    assert readers.seat([], running=False) == [(1, reading(1))]
    assert readers.leave(1) == reading(1)


@pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 2), (3, 2), (6, 4), (64, 43)])
def test_slots_that_new_questions_leave(slots, most):
    assert Readers(slots).most_asking == most


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(20))
def test_no_run_stands_still(slots, seed):
    """A run in which every episode asks three times and answers come when they like: in each round
    something runs, or a tool is at work."""
    rng = np.random.default_rng(seed)
    readers, waiting = Readers(slots), list(range(12))
    calls = dict.fromkeys(waiting, 3)
    place: dict[int, str | int] = {}  # slot -> question, or "reader"
    tools: set[int] = set()  # slots whose tool is at work
    blocked: set[int] = set()  # slots that wait for a reader
    rounds = finished = 0
    while finished < 12:
        rounds += 1
        assert rounds < 2000
        for slot in [s for s in tools if rng.random() < 0.5]:
            tools.discard(slot)
            blocked.add(slot)
            readers.add(Reading("reader", place[slot], SimpleNamespace(key=slot)))
        free = [s for s in range(slots) if s not in place]
        room = max(0, readers.most_asking - (len(place) - readers.seated))
        running = any(s not in tools and s not in blocked for s in place)
        for slot, read in readers.seat(free, running=running):
            assert (slot == read.answer.key) == (slot in place)
            blocked.discard(slot)
            place[slot] = "reader"
        for slot in free[: min(room, len(waiting))]:
            place[slot] = waiting.pop()
        active = [s for s in place if s not in tools and s not in blocked]
        assert active or tools
        for slot in active:
            if rng.random() < 0.4:
                continue  # it writes on
            if place[slot] == "reader":
                read = readers.leave(slot)
                del place[slot]
                blocked.discard(read.answer.key)
                place[read.answer.key] = read.asking
            elif calls[place[slot]]:
                calls[place[slot]] -= 1
                tools.add(slot)
            else:
                finished += 1
                del place[slot]
    assert not any(calls.values()) and not readers.seated

"""Filters and limits of training questions."""

from collections import Counter

import numpy as np
import pytest

from sr1_jax.data.prepared import Subset, index_of
from sr1_jax.data.questions import Question
from sr1_jax.data.selection import check_pairs, parse_filter, select, selection_sha

TRICKY = {"yes_no": False, "hops": 2, "deep": {"level": "hard", "none": None}, "name": "a=b"}
QUESTION = Question("nq:train:0", "Who?", ("Ann",), TRICKY)


def questions(**counts):
    """So many of each source, interleaved."""
    rows = [
        Question(f"{source}:train:{i}", "Who?" * (i + 1), ("Ann",), {"number": i})
        for source, count in counts.items()
        for i in range(count)
    ]
    return sorted(rows, key=lambda question: question.metadata["number"])


def is_even(question):
    return question.metadata["number"] % 2 == 0


def says_maybe(question):
    return "maybe"


def breaks(question):
    return question.metadata["no such key"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("source=nq", True),
        ("source!=nq", False),
        ("source=hotpotqa|nq", True),
        ("source=hotpotqa", False),
        ("metadata.yes_no=false", True),
        ("metadata.yes_no=true", False),
        ("metadata.yes_no=0", False),  # 0 is a number
        ("metadata.yes_no!=true", True),
        ("metadata.hops=2", True),
        ("metadata.hops=2.0", True),
        ("metadata.hops=1|2", True),
        ('metadata.hops="2"', False),  # text
        ("metadata.deep.level=hard", True),
        ('metadata.deep.level="hard"', True),
        ("metadata.deep.level=easy|medium", False),
        ("metadata.deep.none=null", True),
        ("metadata.missing=null", True),
        ("metadata.missing!=null", False),
        ("metadata.hops.more=null", True),  # a number has no keys
        ("metadata.name=a=b", True),
    ],
)
def test_conditions(text, kept):
    assert parse_filter(text)(QUESTION) is kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "data.filter has 'nonsense'; write source=NAME"),
        ("", "data.filter has ''"),
        ("metadata=x", "write source=NAME"),
        ("metadata.=x", "write source=NAME"),
        ("question=Who", "write source=NAME"),
        ("source=", "write source=NAME"),
        ("no_such_module:f", "there is no module no_such_module"),
        ("test_selection:nothing", "nothing is not there"),
        (":f", "is no import path"),
    ],
)
def test_what_is_no_filter(text, message):
    with pytest.raises(ValueError, match=message):
        parse_filter(text)


def test_a_function_of_ones_own():
    keep = parse_filter("test_selection:is_even")
    assert [keep(q) for q in questions(nq=3)] == [True, False, True]
    with pytest.raises(
        ValueError, match=r"must return True or False, not 'maybe' \(question nq:tr"
    ):
        parse_filter("test_selection:says_maybe")(QUESTION)
    with pytest.raises(ValueError, match=r"breaks' on question nq:train:0: .*:\d+: KeyError"):
        parse_filter("test_selection:breaks")(QUESTION)


def test_all_filters_have_to_pass():
    source = questions(nq=6, hotpotqa=6)
    left = select(source, filters=("source=nq", "test_selection:is_even"))
    assert [left[i].id for i in range(len(left))] == ["nq:train:0", "nq:train:2", "nq:train:4"]
    assert left.index.bytes_Q.tolist() == [4, 12, 20]
    assert {left.index.sources[n] for n in left.index.source_Q} == {"nq"}
    with pytest.raises(ValueError, match=r"data\.filter=\('source=popqa',\) leaves no question"):
        select(source, filters=("source=popqa",))


def test_without_filters_and_limits_the_source_stays_itself():
    source = questions(nq=3)
    assert select(source) is source and selection_sha(source) == b""
    assert select(source, filters=("source=nq",), limits={"*": 5}) is source


def limited(source, limits, seed=0, **more):
    left = select(source, limits=limits, seed=seed, **more)
    return [left[i].id for i in range(len(left))]


def test_limits():
    source = questions(nq=40, hotpotqa=30, popqa=3)
    count = lambda ids: Counter(id.partition(":")[0] for id in ids)  # noqa: E731
    ids = limited(source, {"nq": 7, "*": 5})
    assert count(ids) == {"nq": 7, "hotpotqa": 5, "popqa": 3}
    assert count(limited(source, {"nq": 7})) == {"nq": 7, "hotpotqa": 30, "popqa": 3}
    # In the order of the source, and not its head.
    order = {question.id: place for place, question in enumerate(source)}
    assert [order[id] for id in ids] == sorted(order[id] for id in ids)
    assert max(int(id.split(":")[2]) for id in ids if id.startswith("nq")) > 7
    assert ids != limited(source, {"nq": 7, "*": 5}, seed=1)
    with pytest.raises(
        ValueError, match=r"data\.limit names 'musique', of which there are no quest"
    ):
        limited(source, {"musique": 7})


def test_the_draw_of_a_set_does_not_depend_on_others_nor_on_the_limit():
    alone = limited(questions(nq=40), {"nq": 7})
    among = limited(questions(nq=40, hotpotqa=30), {"nq": 7, "hotpotqa": 1})
    assert alone == [id for id in among if id.startswith("nq")]
    assert set(alone) < set(limited(questions(nq=40), {"nq": 12}))


def test_limits_count_what_passes_the_filters():
    ids = limited(questions(nq=40), {"nq": 15}, filters=("test_selection:is_even",))
    assert len(ids) == 15 and all(int(id.split(":")[2]) % 2 == 0 for id in ids)


def test_every_question_is_as_likely_to_be_kept():
    """5 of 20, over 2,000 seeds: chi-square with 19 degrees of freedom."""
    source = questions(nq=20)
    counts = Counter(id for seed in range(2000) for id in limited(source, {"nq": 5}, seed))
    observed = np.array([counts[question.id] for question in source])
    assert observed.sum() == 10_000
    # Without replacement the counts vary less than those of independent draws, by 15/20 · 20/19.
    chi_square = ((observed - 500) ** 2 / 500).sum() / (15 / 20 * 20 / 19)
    assert chi_square < 43.8  # one in a thousand is larger


def test_a_selection_is_known_by_what_is_in_it():
    source = questions(nq=10)
    shas = {selection_sha(Subset(source, numbers)) for numbers in ([1, 2], [1, 3], [1, 2, 3])}
    assert len(shas) == 3


def test_what_a_list_is_known_by():
    index = index_of(questions(nq=2, hotpotqa=1))
    assert index.sources == ("nq", "hotpotqa") and index.source_Q.tolist() == [0, 1, 0]
    assert index.bytes_Q.tolist() == [4, 4, 8]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("nq",), "data.weights must hold pairs of a set and a weight, not 'nq'"),
        ((("nq",),), "must hold pairs"),
        (((1, "nq"),), "must hold pairs"),
        ((("nq", -1),), r"not \('nq', -1\)"),
        ((("nq", True),), "must hold pairs"),
        ((("nq", 1), ("nq", 2)), "data.weights names 'nq' twice"),
    ],
)
def test_pairs(pairs, message):
    with pytest.raises(ValueError, match=message):
        check_pairs(pairs, "data.weights", lambda x: isinstance(x, int) and x >= 0, "a weight")

"""The reward of a run: terms by name and import path, weights, segments, what is left out."""

import sys

import numpy as np
import pytest

from sr1_jax.data.questions import Question
from sr1_jax.rewards import TERMS, Reward
from sr1_jax.rewards.reward import check_terms
from sr1_jax.rewards.settings import REWARD

QUESTION = Question("q", "Who?", ("Bob",), {"hops": 2})
OWN = """
def searches(trajectory, question):
    return len(trajectory.searches) / question.metadata["hops"]

def by_segment(trajectory, question):
    return [0.5] * trajectory.segments

def together(trajectories, questions):
    assert isinstance(trajectories, list) and len(trajectories) == len(questions)
    return [float(len(trajectories)) for _ in trajectories]
together.batched = True

def too_few(trajectories, questions):
    return [1.0]
too_few.batched = True

def nan(trajectory, question):
    return float("nan")

def text(trajectory, question):
    return "high"

def wrong_length(trajectory, question):
    return [1.0] * (trajectory.segments + 1)

VALUE = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module `own_terms` in a folder that is not the package's."""
    (tmp_path / "own_terms.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_terms", None)


def settings(**changes):
    config = REWARD.defaults()
    config.update(changes)
    return config


def score(trajectories, budget=100, **changes):
    return Reward(settings(**changes), budget).score(trajectories, [QUESTION] * len(trajectories))


@pytest.fixture
def make(make_trajectory):
    """A trajectory of three segments."""
    shape = {"ids": range(1, 8), "mask": (0, 1, 0, 1, 1, 0, 1), "segments": 3}
    return lambda **fields: make_trajectory(**(shape | fields))


def test_exact_match_is_the_default(make):
    right, wrong, none = score([make(answer="bob"), make(answer="Al"), make(answer=None)])
    assert [t.reward for t in (right, wrong, none)] == [1.0, 0.0, 0.0]
    assert right.rewards == {"em": 1.0}
    np.testing.assert_array_equal(right.segment_rewards, np.float32([0, 0, 1]))


def test_weighted_terms_add_up(make, own):
    terms = (("em", 2.0), ("own_terms:searches", -0.5), ("own_terms:by_segment", 1.0))
    (t,) = score([make(answer="Bob", searches=["a"])], terms=terms)
    assert t.rewards == {"em": 1.0, "own_terms:searches": 0.5, "own_terms:by_segment": 1.5}
    np.testing.assert_allclose(t.segment_rewards, [0.5, 0.5, 0.5 + 2.0 - 0.25])
    assert t.reward == pytest.approx(2.0 - 0.25 + 1.5)
    assert t.reward == pytest.approx(float(t.segment_rewards.sum()))


def test_terms_in_batches(make, own):
    found = score([make(), make(), make()], terms=(("own_terms:together", 1.0),))
    assert [t.reward for t in found] == [3.0, 3.0, 3.0]
    assert score([], terms=(("own_terms:together", 1.0),)) == []


@pytest.mark.parametrize(
    ("answer", "well_formed", "want"),
    [("Bob", True, 1.0), ("Bob", False, 0.8), ("Al", True, 0.2), ("Al", False, 0.0)],
)
def test_the_published_table_of_format(make, answer, well_formed, want):
    """arXiv 2505.15117; as two terms it reads the same for a score of 0 or 1."""
    t = make(answer=answer, well_formed=well_formed)
    (table,) = score([t], terms=(("em_format", 1.0),), format_weight=0.2)
    (added,) = score([t], terms=(("em", 0.8), ("well_formed", 0.2)))
    assert table.reward == pytest.approx(want) == pytest.approx(added.reward)


def test_what_a_cut_episode_costs(make):
    cut, whole = make(status="truncated"), make(answer="Bob", status="answered")
    terms = (("em", 1.0), ("truncated", -0.5))
    assert [t.reward for t in score([cut, whole], terms=terms)] == [-0.5, 1.0]


@pytest.mark.parametrize(("tokens", "share"), [(70, 0.0), (80, 0.0), (85, 0.25), (100, 1.0)])
def test_length_costs_in_the_last_tokens_of_the_budget(make, tokens, share):
    """DAPO, equation 13: linear over the buffer."""
    t = make(answer="Bob", ids=range(tokens), mask=[0, 1] + [0] * (tokens - 2), segments=1)
    (found,) = score([t], terms=(("em", 1.0), ("overlong", -2.0)), overlong_buffer=20)
    assert found.rewards["overlong"] == pytest.approx(share)
    assert found.reward == pytest.approx(1.0 - 2.0 * share)


def test_ending_in_time_never_costs_more_than_being_cut(make):
    terms = (("overlong", -1.0),)
    cut, late = make(status="truncated"), make(ids=range(99), mask=[0, 1] + [0] * 97, segments=1)
    cut, late = score([cut, late], terms=terms, overlong_buffer=50)
    assert cut.reward == -1.0 < late.reward


def test_cut_episodes_train_unless_they_are_masked(make):
    pair = [make(status="truncated"), make(status="no_answer")]
    assert [t.trains for t in score(pair)] == [True, True]
    assert [t.trains for t in score(pair, truncated="mask")] == [False, True]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ((), "at least one"),
        (("em", 1.0), "pairs, not 'em'"),
        ((("em", "1"),), r"pairs, not \('em', '1'\)"),
        ((("em", float("inf")),), "pairs, not"),
        ((("em", 1.0), ("em", 2.0)), "names 'em' twice"),
        ((("em", 0.0), ("f1", 0)), "all weights are 0"),
        ((("bleu", 1.0),), "reward.terms has 'bleu'; a term is one of em, f1, "),
        ((("own_terms:none", 1.0),), "none is not there in .*own_terms.py"),
        ((("own_terms:VALUE", 1.0),), "VALUE is not callable in"),
        ((("nowhere:term", 1.0),), "there is no module nowhere"),
    ],
)
def test_bad_terms_are_refused(own, terms, message):
    with pytest.raises(ValueError, match=message):
        check_terms(settings(terms=terms))


@pytest.mark.parametrize("name", ["nan", "text", "wrong_length"])
def test_bad_values_are_refused(own, make, name):
    message = f"term 'own_terms:{name}' returned .* for question q: it must be a finite number"
    with pytest.raises(ValueError, match=message):
        score([make()], terms=((f"own_terms:{name}", 1.0),))


def test_a_batch_of_another_length_is_refused(own, make):
    with pytest.raises(ValueError, match="returned 1 values for 2 trajectories"):
        score([make(), make()], terms=(("own_terms:too_few", 1.0),))


@pytest.mark.parametrize("name", [name for name in TERMS if name != "judge"])
def test_every_named_term_gives_a_number(make, name):
    (t,) = score([make(answer="Bob")], terms=((name, 1.0),), overlong_buffer=10)
    assert 0.0 <= t.reward <= 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_weight": 0.2}, r"reward\.format_weight=0\.2 is the share .* set both or neither"),
        ({"terms": (("em_format", 1.0),)}, r"reward\.format_weight=0\.0 is the share"),
        ({"overlong_buffer": 9}, r"reward\.overlong_buffer=9 is where the term overlong"),
        ({"terms": (("overlong", -1.0),)}, r"reward\.overlong_buffer=0 is where"),
    ],
)
def test_settings_that_no_term_reads_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_terms(settings(**changes))


def test_rewards_are_equal_where_the_learner_sees_them_equal(make, own):
    (t,) = score([make(answer="Bob")], terms=(("em", 0.1), ("well_formed", 0.2), ("f1", 0.7)))
    assert t.reward == float(np.float32(t.reward))


def test_an_error_of_a_term_names_term_question_and_line(make, tmp_path, monkeypatch):
    (tmp_path / "own_faulty.py").write_text("def term(t, q):\n    return t.nosuch\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"term 'own_faulty:term', question q: .*own_faulty\.py:2: AttributeError: .*nosuch"
    with pytest.raises(ValueError, match=message):
        score([make()], terms=(("own_faulty:term", 1.0),))
    sys.modules.pop("own_faulty", None)

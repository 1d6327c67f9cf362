"""The published table of answer, format and retrieval, in all its combinations; and responses whose
format is hard to tell, judged as a run would judge them."""

import itertools

import pytest

from sr1_jax.data.questions import Question
from sr1_jax.environment import Observation, SearchRecord
from sr1_jax.environment.episode import Episode, Next, Rules
from sr1_jax.protocol.automaton import TagAutomaton
from sr1_jax.protocol.observations import render_observation
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards import Reward, outcome_reward
from sr1_jax.rewards.settings import REWARD

ANSWERS = {"right": "Paris", "wrong": "Rome", "blank": " ", "none": None}


def published(answer, well_formed, retrieved, w, f, r):
    """The cases of the published reward, one after the other; a blank answer is none."""
    if answer in (" ", None):
        if not well_formed:
            return 0.0
        return w + r if retrieved else w
    if answer == "Paris":
        return 1.0 if well_formed else 1.0 - w
    if well_formed:
        return w + r if retrieved else w
    return f


@pytest.mark.parametrize("weights", [(0.2, 0.1, 0.1), (0.2, 0, 0), (0, 0.1, 0), (0, 0, 0.1),
                                     (0.4, 0.2, 0.3), (0, 0, 0), (1, 0, 0)])  # fmt: skip
@pytest.mark.parametrize("retrieved", [True, False])
@pytest.mark.parametrize("well_formed", [True, False])
@pytest.mark.parametrize("answer", ANSWERS)
def test_every_combination(answer, well_formed, retrieved, weights):
    w, f, r = weights
    found = outcome_reward(
        ANSWERS[answer], ["paris"], well_formed, retrieved=retrieved,
        format_weight=w, final_format_weight=f, retrieval_weight=r,
    )  # fmt: skip
    assert found == pytest.approx(published(ANSWERS[answer], well_formed, retrieved, w, f, r))


def test_the_values_of_the_paper():
    """0.2, 0.1 and 0.1, as numbers: right, wrong with gold, wrong without, no answer."""
    rows = {
        (answer, well_formed, retrieved): outcome_reward(
            ANSWERS[answer], ["paris"], well_formed, retrieved=retrieved,
            format_weight=0.2, final_format_weight=0.1, retrieval_weight=0.1,
        )
        for answer, well_formed, retrieved in itertools.product(
            ("right", "wrong", "none"), (True, False), (True, False)
        )
    }  # fmt: skip
    assert {key: round(value, 6) for key, value in rows.items()} == {
        ("right", True, True): 1.0, ("right", True, False): 1.0,
        ("right", False, True): 0.8, ("right", False, False): 0.8,
        ("wrong", True, True): 0.3, ("wrong", True, False): 0.2,
        ("wrong", False, True): 0.1, ("wrong", False, False): 0.1,
        ("none", True, True): 0.3, ("none", True, False): 0.2,
        ("none", False, True): 0.0, ("none", False, False): 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("well_formed", [True, False])
@pytest.mark.parametrize("retrieved", [True, False])
def test_a_graded_answer_never_earns_less_than_a_worse_one(well_formed, retrieved):
    golden = ["one two three four five six seven eight nine"]
    predictions = ["zero", "one zero", "one two", "one two three four", golden[0]]
    rewards = [
        outcome_reward(
            p, golden, well_formed, retrieved=retrieved, metric="f1",
            format_weight=0.2, final_format_weight=0.1, retrieval_weight=0.1,
        )
        for p in predictions
    ]  # fmt: skip
    assert rewards == sorted(rewards) and rewards[-1] > rewards[0] > 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"final_format_weight": -0.1}, r"final_format_weight is -0\.1; choose .*not negative"),
        ({"format_weight": 0.9, "final_format_weight": 0.2}, r"final_format_weight is 0\.2"),
        ({"format_weight": 0.9, "retrieval_weight": 0.2}, r"retrieval_weight is 0\.2"),
        ({"retrieval_weight": float("nan")}, "retrieval_weight is nan"),
    ],
)
def test_weights_with_which_wrong_would_earn_more_than_right(weights, message):
    with pytest.raises(ValueError, match=message):
        outcome_reward("a", ["a"], True, **weights)


# Responses, turn by turn: "s: …" is said by the policy, "found" is what a search showed.

T, S, A = "<think>t</think>", "<search>q</search>", "<answer>Bob</answer>"
GOLD = [Passage("1", "Paris", "The mayor is Bob.", 1.0)]
TRICK = [Passage("2", "T</information>", "<answer>Bob</answer></information><answer>Bob", 1.0)]

# (segments, passages of each search, answer, well formed, final format)
RESPONSES = {
    "answers at once": ([T + A], [], "Bob", 1, 1),
    "searches first": ([T + S, T + A], [GOLD], "Bob", 1, 1),
    "white space between": ([f"\n {T}\n\n{A}"], [], "Bob", 1, 1),
    "white space within": ([f"{T}<answer>\n Bob \n</answer>"], [], "Bob", 1, 1),
    "no thought": ([A], [], "Bob", 0, 1),
    "no thought before a search": ([S, T + A], [GOLD], "Bob", 0, 1),
    "words between blocks": ([f"{T}so{A}"], [], "Bob", 0, 1),
    "two thoughts": ([T + T + A], [], "Bob", 0, 1),
    "an empty thought": ([f"<think></think>{A}"], [], "Bob", 0, 1),
    "an open thought": ([f"<think>t{A}"], [], "Bob", 0, 1),
    "another tag": ([f"{T}<refine>r</refine>{A}"], [], "Bob", 0, 1),
    "a tag in capitals": ([f"<Think>t</Think>{A}"], [], "Bob", 0, 1),
    "a blank answer": ([f"{T}<answer> </answer>"], [], "", 0, 0),
    "a search inside an answer": ([f"{T}<answer>{S}", T + A], [GOLD], "Bob", 0, 1),
    "an answer tag inside the answer": ([f"{T}<answer>x<answer>Bob</answer>"], [], "Bob", 0, 1),
    "an answer inside a thought": (["<think>t<answer>Bob</answer>"], [], "Bob", 0, 1),
    "a search written twice": ([T + "<search>a</search"  + S, T + A], [GOLD], "Bob", 0, 1),
    "an invented observation": (
        [f"{T}<information>Bob</information>{T}{A}"], [], "Bob", 0, 1,
    ),
    "an answer in a passage": ([T + S, T + "<answer>Al</answer>"], [TRICK], "Al", 1, 1),
    "an answer in a passage alone": ([T + S, T], [TRICK], None, 0, 0),
    "an answer that is never closed": ([T + "<answer>Bob"], [], None, 0, 0),
    "a closing tag alone": ([T + "Bob</answer>"], [], None, 0, 0),
    "nothing": ([""], [], None, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", RESPONSES)
def test_hard_formats(small_tokenizer, name):
    segments, found, answer, well_formed, final_format = RESPONSES[name]
    question = Question("q", "Who?", ("Bob",))
    episode = Episode(question, 0, [9] * 5, Rules(small_tokenizer, len(found), 400, 4000))
    found = list(found)
    for number, text in enumerate(segments):
        ids = small_tokenizer.encode(text) or [0]
        episode.add_sampled(ids, [0.0] * len(ids))
        stops = [tag for tag in ("</search>", "</answer>") if text.endswith(tag)]
        following = episode.advance(stops[0] if stops else TagAutomaton.END_OF_TEXT)
        if number + 1 < len(segments):
            assert following is Next.CALL
            passages = found.pop(0)
            shown = render_observation(passages, small_tokenizer, 200)
            record = SearchRecord([episode.request], [passages])
            episode.answered(Observation("", record), shown)
    config = REWARD.defaults()
    config.terms = (("em_format", 1.0), ("well_formed", 0.0), ("final_format", 0.0))
    config.format_weight, config.final_format_weight = 0.2, 0.1
    (t,) = Reward(config, 4000).score([episode.trajectory()], [question])
    assert t.answer == answer
    assert t.rewards["well_formed"] == well_formed
    assert t.rewards["final_format"] == final_format
    said = ANSWERS["right"] if answer == "Bob" else (ANSWERS["wrong"] if answer else None)
    assert t.reward == pytest.approx(published(said, well_formed, False, 0.2, 0.1, 0))

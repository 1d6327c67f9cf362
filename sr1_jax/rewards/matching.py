"""Outcome rewards: how well an answer matches the golden answers.

Normalisation and scores follow the SQuAD evaluation (Rajpurkar et al. 2016, arXiv 1606.05250) and,
for F1, the HotpotQA evaluation (Yang et al. 2018, arXiv 1809.09600). Two cases are settled here:

- A golden answer that normalises to nothing (the band "The The") is a substring of every string;
  `substring_match` lets it match only a prediction that normalises to nothing too.
- Without any common token F1 is 0, as in HotpotQA, even if both sides normalise to nothing.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


def normalize_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation, drop the articles a/an/the, collapse white space.

    Source: SQuAD evaluation, in that order ("U.S." becomes "us"; a hyphen joins its two words).
    """
    without_punctuation = text.lower().translate(_DROP_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def _normalized_golden(golden_answers: str | Iterable[str]) -> list[str]:
    if isinstance(golden_answers, str):
        golden_answers = [golden_answers]
    elif not isinstance(golden_answers, Iterable):
        raise ValueError(
            f"golden_answers must be a list of strings, got {golden_answers!r}; "
            "give at least one golden answer per question"
        )
    golden = list(golden_answers)
    if not golden:
        raise ValueError("golden_answers is empty; give at least one golden answer per question")
    for index, answer in enumerate(golden):
        if not isinstance(answer, str):
            raise ValueError(
                f"golden_answers[{index}] is {answer!r} of type {type(answer).__name__}; "
                "write every golden answer as a string"
            )
    return [normalize_answer(answer) for answer in golden]


def exact_match(prediction: str | None, golden_answers: str | Iterable[str]) -> bool:
    """True if the normalised prediction equals one of the normalised golden answers.

    Args:
        prediction: the answer given; None (no answer) never matches.
        golden_answers: one string or a non-empty list of strings.

    Raises:
        ValueError: golden_answers is empty or holds something other than strings.
    """
    golden = _normalized_golden(golden_answers)
    return prediction is not None and normalize_answer(prediction) in golden


def substring_match(prediction: str | None, golden_answers: str | Iterable[str]) -> bool:
    """True if one of the normalised golden answers occurs inside the normalised prediction.

    Arguments and errors as in `exact_match`. Characters are compared, not words.
    """
    golden = _normalized_golden(golden_answers)
    if prediction is None:
        return False
    normalized = normalize_answer(prediction)
    return any(answer in normalized if answer else not normalized for answer in golden)


def _token_f1(prediction: str, golden: str) -> float:
    if prediction != golden and not _CLOSED_ANSWERS.isdisjoint((prediction, golden)):
        return 0.0
    prediction_tokens, golden_tokens = prediction.split(), golden.split()
    common = (Counter(prediction_tokens) & Counter(golden_tokens)).total()
    # 2 p r / (p + r) with p = common / |prediction| and r = common / |golden|.
    return 2 * common / (len(prediction_tokens) + len(golden_tokens)) if common else 0.0


def f1_score(prediction: str | None, golden_answers: str | Iterable[str]) -> float:
    """Best token-level F1 over the golden answers, in [0, 1]; 0.0 for no prediction.

    Tokens are the words of the normalised strings, counted with multiplicity. If either side is
    "yes", "no" or "noanswer" and the two differ, that golden answer scores 0 (HotpotQA evaluation).

    Arguments and errors as in `exact_match`.
    """
    golden = _normalized_golden(golden_answers)
    if prediction is None:
        return 0.0
    normalized = normalize_answer(prediction)
    return max(_token_f1(normalized, answer) for answer in golden)


METRICS: dict[str, Callable[[str | None, str | Iterable[str]], float | bool]] = {
    "em": exact_match,
    "f1": f1_score,
    "substring": substring_match,
}


def outcome_reward(
    answer: str | None,
    golden_answers: str | Iterable[str],
    well_formed: bool,
    *,
    metric: str = "em",
    format_weight: float = 0.0,
) -> float:
    """Score of an answer, with an optional share w = format_weight for the response's format.

    Source: the format reward of arXiv 2505.15117. With score 1 for correct and 0 for wrong:

                     well formed    ill-formed
        correct           1            1 - w
        wrong             w              0

    For a graded metric (F1) the same table reads max(score, w) and max(score - w, 0): a partly
    right answer never earns less than a wrong one of the same format, and nothing is negative.

    Args:
        answer: the extracted answer, or None if the response holds none (score 0).
        golden_answers: one string or a non-empty list of strings.
        well_formed: whether the whole response follows the protocol (`protocol.is_well_formed`).
        metric: "em", "f1" or "substring".
        format_weight: w in [0, 1]; 0 ignores the format.

    Returns:
        The reward, in [0, 1].

    Raises:
        ValueError: unknown metric, format_weight outside [0, 1], or bad golden_answers.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown reward metric {metric!r}; choose one of {sorted(METRICS)}")
    if not 0.0 <= format_weight <= 1.0:
        raise ValueError(f"format_weight is {format_weight}; choose a value in [0, 1]")
    score = float(METRICS[metric](answer, golden_answers))
    return float(max(score, format_weight) if well_formed else max(score - format_weight, 0.0))

"""How well an answer matches the golden answers.

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
# Answers of which a part is worth nothing (HotpotQA evaluation).
CLOSED_ANSWERS = frozenset({"yes", "no", "noanswer"})


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

    Also called cover exact match, cover-EM, as in R1-Searcher (arXiv 2503.05592).
    Arguments and errors as in `exact_match`. Characters are compared, not words.
    """
    golden = _normalized_golden(golden_answers)
    if prediction is None:
        return False
    normalized = normalize_answer(prediction)
    return any(answer in normalized if answer else not normalized for answer in golden)


def _token_f1(prediction: str, golden: str) -> float:
    if prediction != golden and not CLOSED_ANSWERS.isdisjoint((prediction, golden)):
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


# By name. "cover_em" is what papers call what is "substring" in results and older settings.
METRICS: dict[str, Callable[[str | None, str | Iterable[str]], float | bool]] = {
    "em": exact_match,
    "f1": f1_score,
    "substring": substring_match,
    "cover_em": substring_match,
}

"""What several samples of a question are worth together: the best of k, and a vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sr1_jax.rewards import normalize_answer


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that of k samples, drawn from all without replacement, at least one is correct.

    1 - C(n - c, k) / C(n, k), unbiased for the chance of k fresh samples (Chen et al. 2021, arXiv
    2107.03374, equation 1), as the product they give for it, which neither overflows nor cancels.

    Args:
        samples: n of the question.
        correct: c of them.
        k: from 1 to n.

    Raises:
        ValueError: k is not among these, or c is more than n.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {samples} samples, {correct} of them correct, is undefined.")
    if samples - correct < k:
        return 1.0
    missed = 1.0
    for i in range(samples - correct + 1, samples + 1):
        missed *= 1.0 - k / i
    return 1.0 - missed


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer that most samples gave, normalised for the count; None if none gave any.

    Samples without an answer have no vote. Of answers with as many votes the one wins that came
    first, in the order of the samples.

    Args:
        answers: of the samples, in their order.

    Returns:
        The winner, as the first sample that gave it wrote it.
    """
    votes = Counter(normalize_answer(answer) for answer in answers if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    return next(a for a in answers if a is not None and votes[normalize_answer(a)] == most)


def ks_of(samples: int) -> list[int]:
    """For which k the best of k is given: powers of two from 2 on, and the number of samples."""
    powers = (2**exponent for exponent in range(1, samples.bit_length()))
    return sorted({*powers, samples} - {1})

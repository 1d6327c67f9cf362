"""Questions about the harder world, by kind.

    one_hop       a fact                                   Where was Nelvan Corsik born?
    misled        a fact beside which a passage misleads   (asked in the same words)
    two_hop       a fact about the object of another       What is the country of the town where …?
    three_hop     once more                                In which country is the town where the
                                                           person who wrote The Amber Bell was born?
    comparison    two facts, compared                      Who graduated earlier, … or …?
                                                           Were … and … born in the same town?
    unanswerable  a fact that is absent, of an entity or of the object of a fact: "not known"

Chains of two and three hops may have misleading passages too; metadata.misled says how many facts
of a question have one. No chain comes back to an entity that it has passed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sr1_jax.data.questions import Question
from sr1_jax.world.facts import TWO_HOPS
from sr1_jax.world.harder.facts import (
    FACT,
    HARDER_RELATIONS,
    NOT_KNOWN,
    HarderWorld,
    Statement,
)

# Share of each kind in samples.
SHARES = {
    "one_hop": 0.1,
    "misled": 0.15,
    "two_hop": 0.35,
    "three_hop": 0.15,
    "comparison": 0.15,
    "unanswerable": 0.1,
}
# One fact answers these, or shows that there is none; the others take more than one.
SINGLE = ("one_hop", "misled", "unanswerable")
_EARLIER = {
    "graduation": ("Who graduated earlier, {a} or {b}?", "Of {a} and {b}, who graduated earlier?"),
    "publication": (
        "Which was published earlier, {a} or {b}?",
        "Of {a} and {b}, which was published earlier?",
    ),
}
_SAME = {
    "birthplace": (
        "Were {a} and {b} born in the same town?",
        "Were {a} and {b} both born in one town?",
    ),
    "headquarters": (
        "Are the headquarters of {a} and {b} in the same town?",
        "Do {a} and {b} have their headquarters in the same town?",
    ),
}
COMPARED = (*_EARLIER, *_SAME)
_NEXT = {
    first: tuple(second for one, second in TWO_HOPS if one == first) for first in HARDER_RELATIONS
}

# (subject, relation, object) of each fact that a question needs; None for the object of an absent.
Chain = list[tuple[str, str, str | None]]


def questions_by_kind(
    world: HarderWorld, split: str, rng: random.Random
) -> dict[str, list[Question]]:
    """All questions of a split by kind; of three hops, one for each way through the first two.

    Args:
        world: to ask about.
        split: whose entities are asked about.
        rng: decides wordings, last hops and pairs to compare.
    """
    facts = [s for s in world.statements if s.kind == FACT and s.split == split]
    pools: dict[str, list[Question]] = {kind: [] for kind in SHARES}
    for fact in facts:
        chain: Chain = [(fact.subject, fact.relation, fact.object)]
        kind = "misled" if world.misled(fact.subject, fact.relation) else "one_hop"
        pools[kind].append(_hop_question(world, kind, split, chain, rng))
    for subject, relation, of_split in world.absent:
        if of_split == split:
            chain = [(subject, relation, None)]
            pools["unanswerable"].append(_hop_question(world, "unanswerable", split, chain, rng))
    # As many again at most that are found to be unanswerable only at the second hop.
    broken = []
    for two in _two_hops(world, facts):
        if two[-1][2] is None:
            broken.append(_hop_question(world, "unanswerable", split, two, rng))
            continue
        pools["two_hop"].append(_hop_question(world, "two_hop", split, two, rng))
        if three := _third_hop(world, two, rng):
            pools["three_hop"].append(_hop_question(world, "three_hop", split, three, rng))
    count = min(len(broken), len(pools["unanswerable"]) // 2)
    pools["unanswerable"] += rng.sample(broken, count)
    pools["comparison"] = list(_comparisons(world, split, facts, rng))
    return pools


def sample_harder_questions(
    world: HarderWorld, split: str, *, at_most: int, seed: int
) -> list[Question]:
    """A sample of a split in which each kind has its share of `SHARES`, shuffled.

    Args:
        world: to ask about.
        split: whose entities are asked about.
        at_most: questions; a kind of which there are too few has as many as there are.
        seed: decides which.
    """
    rng = random.Random(f"harder questions {split} {seed}")
    chosen = []
    for kind, pool in questions_by_kind(world, split, rng).items():
        chosen += rng.sample(pool, min(len(pool), round(SHARES[kind] * at_most)))
    rng.shuffle(chosen)
    return chosen


def _two_hops(world: HarderWorld, facts: list[Statement]) -> Iterator[Chain]:
    for first in facts:
        for relation in _NEXT[first.relation]:
            second = world.fact(first.object, relation)
            target = second.object if second else None
            if target != first.subject:
                yield [
                    (first.subject, first.relation, first.object),
                    (first.object, relation, target),
                ]


def _third_hop(world: HarderWorld, two: Chain, rng: random.Random) -> Chain | None:
    passed = {subject for subject, _, _ in two}
    third = [world.fact(two[-1][2], relation) for relation in _NEXT[two[-1][1]]]
    third = [fact for fact in third if fact and fact.object not in passed]
    if not third:
        return None
    fact = rng.choice(third)
    return [*two, (fact.subject, fact.relation, fact.object)]


def _hop_question(
    world: HarderWorld, kind: str, split: str, chain: Chain, rng: random.Random
) -> Question:
    asked = chain[0][0]
    for _, relation, _ in chain[:-1]:
        asked = HARDER_RELATIONS[relation].phrase.format(s=asked)
    text = rng.choice(HARDER_RELATIONS[chain[-1][1]].questions).format(s=asked)
    name = ".".join([chain[0][0], *(relation for _, relation, _ in chain)])
    return _question(world, kind, split, name, text, chain[-1][2] or NOT_KNOWN, chain)


def _comparisons(
    world: HarderWorld, split: str, facts: list[Statement], rng: random.Random
) -> Iterator[Question]:
    """One for each fact that can be compared; where yes and no are possible, evenly so."""
    compared = set()
    for relation in COMPARED:
        those = [fact for fact in facts if fact.relation == relation]
        for number, one in enumerate(those):
            same = relation in _SAME and number % 2 == 0
            others = [o for o in those if (o.object == one.object) == same and o is not one]
            if not others:
                continue
            pair = [one, rng.choice(others)]
            rng.shuffle(pair)
            a, b = pair
            if (a, b) in compared:
                continue
            compared.add((a, b))
            if relation in _EARLIER:
                answer = min(pair, key=lambda fact: int(fact.object)).subject
            else:
                answer = "yes" if same else "no"
            wordings = _EARLIER.get(relation) or _SAME[relation]
            text = rng.choice(wordings).format(a=a.subject, b=b.subject)
            chain: Chain = [(fact.subject, relation, fact.object) for fact in pair]
            name = f"{a.subject}.{relation}.{b.subject}"
            yield _question(world, "comparison", split, name, text, answer, chain)


def _question(
    world: HarderWorld, kind: str, split: str, name: str, text: str, answer: str, chain: Chain
) -> Question:
    metadata = {
        "kind": kind,
        "hops": len(chain),
        "misled": sum(world.misled(subject, relation) for subject, relation, _ in chain),
        "chain": [list(link) for link in chain],
    }
    return Question(f"world:{split}:{name.replace(' ', '_')}", text, (answer,), metadata)


def options(question: Question) -> tuple[str, str]:
    """The two answers that a comparison asks to choose from."""
    (one, relation, _), (other, _, _) = question.metadata["chain"]
    return ("yes", "no") if relation in _SAME else (one, other)

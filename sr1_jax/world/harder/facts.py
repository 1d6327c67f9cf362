"""What the corpus of the harder world says: facts, and passages that mislead.

Entities and relations are those of the demo's world (`sr1_jax.world.facts`). What is harder:

- A part of the facts has a second passage beside it with a wrong object, and both are found by the
  same words. It is marked: `Rumour: …`, or, for what can change, `Until 1994: …` beside a passage
  that corrects it, `Since 1994: …`. So two rules decide what is true: a rumour is no evidence, and
  what held until a year holds no more.
- A part of the facts is absent: no passage states them; of half of those there is a rumour, or only
  what held until a year. The right answer to who asks for one is `NOT_KNOWN`.

Names look alike as in the demo's world: a word of a name is that of a dozen others, so that where
nothing is written about somebody, pages of others are found.
"""

from __future__ import annotations

import dataclasses
import random

from sr1_jax.world.facts import (
    RELATIONS,
    SPLITS,
    Relation,
    check_people,
    draw_entities,
    draw_objects,
)

NOT_KNOWN = "not known"
# Kinds of passages: a fact, and two that mislead.
FACT, RUMOUR, OUTDATED = "fact", "rumour", "outdated"
# Relations whose object may change, so that one passage corrects another.
CHANGING = frozenset({"headquarters", "industry", "mayor", "profession"})
# A marriage is on the pages of both, so it is never absent.
_NEVER_ABSENT = frozenset({"spouse"})
_ABSENT, _MISLED = 0.14, 0.3
_YEARS = tuple(str(year) for year in range(1960, 1972))
_YEARS_OF_CHANGE = tuple(str(year) for year in range(1990, 2000))

# Two wordings each, in which the keyword stands before the object: a small policy has to find a
# passage among several that look alike, and should not need to know twelve grammars for it.
_WORDINGS = {
    "birthplace": ("{s} was born in {o}.", "The town where {s} was born is {o}."),
    "spouse": ("{s} is married to {o}.", "{s} has long been married to {o}."),
    "profession": ("The profession of {s} is {o}.", "{s} is by profession {o}."),
    "graduation": ("{s} graduated in {o}.", "{s} graduated in the summer of {o}."),
    "founder": ("{s} was founded by {o}.", "The company {s} was founded by {o}."),
    "headquarters": ("{s} has its headquarters in {o}.", "The headquarters of {s} are in {o}."),
    "industry": ("The industry of {s} is {o}.", "{s} is in an industry called {o}."),
    "author": ("The person who wrote {s} is {o}.", "The one who wrote {s} is {o}."),
    "publication": ("{s} was published in {o}.", "{s} was first published in {o}."),
    "genre": ("The genre of {s} is {o}.", "{s} belongs to the genre of {o}."),
    "country": ("{s} is in the country of {o}.", "The country of {s} is {o}."),
    "mayor": ("The mayor of {s} is {o}.", "{s} has as mayor {o}."),
}

HARDER_RELATIONS = {
    name: dataclasses.replace(
        relation,
        passages=_WORDINGS[name],
        values=_YEARS if name in ("graduation", "publication") else relation.values,
    )
    for name, relation in RELATIONS.items()
}


@dataclasses.dataclass(frozen=True)
class Statement:
    """A passage that says `object` of `relation` of `subject`.

    Attributes:
        subject: also the title.
        relation: by name.
        object: as the passage has it; true only of a fact.
        split: of the subject.
        kind: FACT, RUMOUR or OUTDATED.
        passage: its English.
    """

    subject: str
    relation: str
    object: str
    split: str
    kind: str
    passage: str


@dataclasses.dataclass(frozen=True)
class HarderWorld:
    """All statements in corpus order, and what is absent.

    Attributes:
        statements: one a passage.
        absent: (subject, relation, split) of which no passage states a fact, sorted.
    """

    statements: tuple[Statement, ...]
    absent: tuple[tuple[str, str, str], ...]

    def __post_init__(self):
        facts, misled = {}, set()
        for statement in self.statements:
            key = statement.subject, statement.relation
            if statement.kind == FACT:
                facts[key] = statement
            else:
                misled.add(key)
        object.__setattr__(self, "_facts", facts)
        object.__setattr__(self, "_misled", frozenset(misled))

    def titled_passages(self) -> list[tuple[str, str]]:
        """Title and text of each passage, in corpus order."""
        return [(statement.subject, statement.passage) for statement in self.statements]

    def fact(self, subject: str, relation: str) -> Statement | None:
        """What is true, or None where that is absent."""
        return self._facts.get((subject, relation))

    def misled(self, subject: str, relation: str) -> bool:
        """Whether a passage says something else, or says it though nothing is known."""
        return (subject, relation) in self._misled


def build_harder_world(
    seed: int,
    *,
    people: int = 640,
    facts_seed: int | None = None,
    names_seed: int | None = None,
) -> HarderWorld:
    """Draws a harder world; arguments and errors as of `sr1_jax.world.facts.build_world`.

    `facts_seed` also decides what is absent, and which facts have a misleading passage.
    """
    check_people(people)
    entities = draw_entities(seed, seed if names_seed is None else names_seed, people)
    rng = random.Random(f"harder facts {seed if facts_seed is None else facts_seed}")
    statements: list[Statement] = []
    absent: list[tuple[str, str, str]] = []
    for split in SPLITS:
        pools = entities[split]
        for relation in HARDER_RELATIONS.values():
            subjects = pools[relation.subject]
            others = relation.values or pools[relation.object]
            for subject, truth in zip(subjects, draw_objects(relation, subjects, pools, rng)):
                passages = _statements(relation, subject, truth, split, others, rng)
                if all(statement.kind != FACT for statement in passages):
                    absent.append((subject, relation.name, split))
                statements += passages
    random.Random(f"harder order {seed}").shuffle(statements)
    return HarderWorld(tuple(statements), tuple(sorted(absent)))


def _statements(
    relation: Relation, subject: str, truth: str, split: str, others, rng: random.Random
) -> list[Statement]:
    """The passages on one relation of one subject: none, one or two."""
    absent = relation.name not in _NEVER_ABSENT and rng.random() < _ABSENT
    misled = rng.random() < (0.5 if absent else _MISLED)
    wrong = rng.choice([other for other in others if other not in (truth, subject)])
    year = rng.choice(_YEARS_OF_CHANGE)
    changes = relation.name in CHANGING

    def say(kind: str, what: str, mark: str = "") -> Statement:
        text = rng.choice(relation.passages).format(s=subject, o=what)
        return Statement(subject, relation.name, what, split, kind, mark + text)

    found = []
    if not absent:
        found.append(say(FACT, truth, f"Since {year}: " if misled and changes else ""))
    if misled and changes:
        found.append(say(OUTDATED, wrong, f"Until {year}: "))
    elif misled:
        found.append(say(RUMOUR, wrong, "Rumour: "))
    return found

"""The fictional world: invented people, towns, companies and books, and what is true of them.

A world is a set of facts (subject, relation, object). Each fact is one passage in one of several
English wordings, titled with its subject; questions ask for one fact, or for a fact about the
object of another. Names are invented and look alike on purpose: people share given and family
names, towns and companies differ in one word only, so that a sloppy query finds the wrong page.

Entities belong to a training or a held-out split, and facts never cross: no held-out question
has an entity that training saw. `facts_seed` draws the facts anew over the same entities.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sr1_jax.data.questions import Question
from sr1_jax.world import word_lists

SPLITS = ("train", "heldout")
_YEARS = [str(year) for year in range(1940, 1990)]


@dataclasses.dataclass(frozen=True)
class Relation:
    """How one relation is stored, asked and searched for.

    Attributes:
        name: unique.
        subject: kind of the entity it is about.
        object: kind of the entity it leads to, or None where `values` lists the answers.
        keyword: the word every passage of the relation has; part of a good query.
        phrase: a noun phrase with `{s}` for the subject.
        questions: wordings with `{s}`.
        passages: wordings with `{s}` and `{o}`.
        values: the closed set of answers, if it is one.
    """

    name: str
    subject: str
    object: str | None
    keyword: str
    phrase: str
    questions: tuple[str, ...]
    passages: tuple[str, ...]
    values: tuple[str, ...] = ()


RELATIONS = {
    relation.name: relation
    for relation in (
        Relation(
            "birthplace", "person", "town", "born", "the town where {s} was born",
            ("Where was {s} born?", "In which town was {s} born?"),
            ("{s} was born in {o}.", "{s} was born and raised in {o}.",
             "It was in {o} that {s} was born."),
        ),
        Relation(
            "spouse", "person", "person", "married", "the person married to {s}",
            ("Who is married to {s}?", "To whom is {s} married?"),
            ("{s} is married to {o}.", "{s} has long been married to {o}.",
             "As is well known, {s} married {o}; they are still married."),
        ),
        Relation(
            "profession", "person", None, "profession", "the profession of {s}",
            ("What is the profession of {s}?", "What profession does {s} have?"),
            ("By profession {s} is a {o}.", "The profession of {s} is that of a {o}.",
             "{s} took up the profession of {o}."),
            tuple(word_lists.PROFESSIONS),
        ),
        Relation(
            "graduation", "person", None, "graduated", "the year {s} graduated",
            ("When was it that {s} graduated?", "In which year was it that {s} graduated?"),
            ("{s} graduated in {o}.", "In {o} {s} graduated with honours.",
             "{s} graduated in the summer of {o}."),
            tuple(_YEARS),
        ),
        Relation(
            "founder", "company", "person", "founded", "the person who founded {s}",
            ("Who founded {s}?", "By whom was {s} founded?"),
            ("{s} was founded by {o}.", "{o} founded {s}.",
             "It was {o} who founded {s}."),
        ),
        Relation(
            "headquarters", "company", "town", "headquarters",
            "the town with the headquarters of {s}",
            ("Where are the headquarters of {s}?", "In which town are the headquarters of {s}?"),
            ("{s} has its headquarters in {o}.", "The headquarters of {s} are in {o}.",
             "From its headquarters in {o}, {s} runs its trade."),
        ),
        Relation(
            "industry", "company", None, "industry", "the industry of {s}",
            ("What is the industry of {s}?", "In which industry is {s}?"),
            ("{s} is in the {o} industry.", "The industry of {s} is {o}.",
             "{s} made its name in the {o} industry."),
            tuple(word_lists.INDUSTRIES),
        ),
        Relation(
            "author", "book", "person", "wrote", "the person who wrote {s}",
            ("Who wrote {s}?", "Who is it that wrote {s}?"),
            ("{o} wrote {s}.", "It was {o} who wrote {s}.",
             "{s} is a book that {o} wrote."),
        ),
        Relation(
            "publication", "book", None, "published", "the year {s} was published",
            ("When was {s} published?", "In which year was {s} published?"),
            ("{s} was published in {o}.", "{s} was first published in {o}.",
             "In {o} {s} was published."),
            tuple(_YEARS),
        ),
        Relation(
            "genre", "book", None, "genre", "the genre of {s}",
            ("What is the genre of {s}?", "To which genre does {s} belong?"),
            ("The genre of {s} is {o}.", "{s} belongs to the {o} genre.",
             "By genre {s} is {o}."),
            tuple(word_lists.GENRES),
        ),
        Relation(
            "country", "town", None, "country", "the country of {s}",
            ("In which country is {s}?", "What is the country of {s}?"),
            ("{s} is in the country of {o}.", "{s} is a town in {o}, a small country.",
             "The country of {s} is {o}."),
            tuple(word_lists.COUNTRIES),
        ),
        Relation(
            "mayor", "town", "person", "mayor", "the mayor of {s}",
            ("Who is the mayor of {s}?", "Who serves {s} as mayor?"),
            ("The mayor of {s} is {o}.", "{o} is mayor of {s}.",
             "{s} elected {o} as mayor."),
        ),
    )
}  # fmt: skip

# Two-hop questions: (relation of the named entity, relation of its object). Going back and
# forth over one marriage leads nowhere, so that pair is left out.
TWO_HOPS = tuple(
    (first.name, second.name)
    for first, second in itertools.product(RELATIONS.values(), repeat=2)
    if first.object == second.subject and (first.name, second.name) != ("spouse", "spouse")
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """`object` answers `relation` of `subject`; `passage` says so in English."""

    subject: str
    relation: str
    object: str
    split: str
    passage: str


@dataclasses.dataclass(frozen=True)
class World:
    """All facts, in corpus order, with look-ups by subject and relation."""

    facts: tuple[Fact, ...]

    def __post_init__(self):
        index = {(fact.subject, fact.relation): fact for fact in self.facts}
        object.__setattr__(self, "_index", index)

    def titled_passages(self) -> list[tuple[str, str]]:
        """Title and text of each passage, in corpus order."""
        return [(fact.subject, fact.passage) for fact in self.facts]

    def fact(self, subject: str, relation: str) -> Fact:
        """The one fact of a subject and a relation."""
        return self._index[subject, relation]


def build_world(
    seed: int,
    *,
    people: int = 640,
    facts_seed: int | None = None,
    names_seed: int | None = None,
) -> World:
    """Draws a world; about 0.3 companies, 0.3 books and 0.25 towns for each of the people.

    Args:
        seed: decides the words names are made of and the held-out entities.
        people: number of people, split three to one into training and held-out.
        facts_seed: decides the facts; `seed` by default.
        names_seed: decides the training entities, none of which is ever a held-out one of
            `seed`; `seed` by default.

    Raises:
        ValueError: `people` is not a multiple of 16 from 64 to 960.
    """
    check_people(people)
    entities = draw_entities(seed, seed if names_seed is None else names_seed, people)
    rng = random.Random(f"facts {seed if facts_seed is None else facts_seed}")
    facts = []
    for split in SPLITS:
        pools = entities[split]
        for relation in RELATIONS.values():
            subjects = pools[relation.subject]
            for subject, answer in zip(subjects, draw_objects(relation, subjects, pools, rng)):
                passage = rng.choice(relation.passages).format(s=subject, o=answer)
                facts.append(Fact(subject, relation.name, answer, split, passage))
    # Shuffled by a draw of its own, so that neighbours in the corpus tell nothing.
    random.Random(f"order {seed}").shuffle(facts)
    return World(tuple(facts))


def check_people(people: int) -> None:
    """Refuses a number of people that names do not suffice for, or that does not split evenly.

    Raises:
        ValueError: it is not a multiple of 16 from 64 to 960.
    """
    if not 64 <= people <= 960 or people % 16:
        raise ValueError(
            f"data.world_people must be a multiple of 16 from 64 to 960, not {people}."
        )


def draw_objects(
    relation: Relation,
    subjects: Sequence[str],
    pools: Mapping[str, Sequence[str]],
    rng: random.Random,
) -> list[str]:
    """An object for each subject; marriages are mutual.

    Args:
        relation: what to draw.
        subjects: all entities of its kind, of a split.
        pools: entities of the split by kind.
        rng: decides.
    """
    if relation.name == "spouse":
        order = rng.sample(subjects, len(subjects))
        partner = dict(zip(order[::2], order[1::2]))
        partner |= {b: a for a, b in partner.items()}
        return [partner[subject] for subject in subjects]
    candidates = relation.values or pools[relation.object]
    return [rng.choice(candidates) for _ in subjects]


def draw_entities(seed: int, names_seed: int, people: int) -> dict[str, dict[str, list[str]]]:
    """Names by split and kind, each of two words that many other names share.

    Every word is seen in training, no held-out name is: the two words of a name say nothing of
    each other, so a name can be copied but not completed by heart.
    """
    rng = random.Random(f"names {seed}")
    stems = [head + tail for head in word_lists.HEADS for tail in word_lists.TAILS]
    rng.shuffle(stems)
    pool = iter(stems)

    def draw(count: int) -> list[str]:
        return list(itertools.islice(pool, count))

    persons = max(people // 13, math.isqrt(2 * people) + 1)
    pairs = {  # kind -> (first words, second words, how many names)
        "person": (draw(persons), draw(persons), people),
        "town": (draw(people // 10), word_lists.TOWN_KINDS, people // 4),
        "company": (draw(people // 12), word_lists.COMPANY_KINDS, 3 * people // 10),
        "book": (word_lists.TITLE_ADJECTIVES, word_lists.TITLE_NOUNS, 3 * people // 10),
    }
    train_rng = random.Random(f"training names {seed} {names_seed}")
    entities: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for kind, (firsts, seconds, count) in pairs.items():
        names = [f"{first} {second}" for first in firsts for second in seconds]
        rng.shuffle(names)
        # Both parts even, so that everybody can be married.
        heldout = count // 8 * 2
        entities["heldout"][kind] = names[:heldout]
        entities["train"][kind] = train_rng.sample(names[heldout:], (count - heldout) // 2 * 2)
    for kinds in entities.values():
        kinds["book"] = [f"The {name}" for name in kinds["book"]]
    return entities


def one_hop_questions(world: World, split: str, rng: random.Random) -> Iterator[Question]:
    """A question for each fact of a split, in corpus order."""
    for fact in world.facts:
        if fact.split == split:
            text = rng.choice(RELATIONS[fact.relation].questions).format(s=fact.subject)
            yield _question(text, [fact], split)


def two_hop_questions(world: World, split: str, rng: random.Random) -> Iterator[Question]:
    """A question for each chain of two facts of a split."""
    for first in world.facts:
        for first_name, second_name in TWO_HOPS:
            if first.split != split or first.relation != first_name:
                continue
            second = world.fact(first.object, second_name)
            bridge = RELATIONS[first_name].phrase.format(s=first.subject)
            text = rng.choice(RELATIONS[second_name].questions).format(s=bridge)
            yield _question(text, [first, second], split)


def _question(text: str, chain: list[Fact], split: str) -> Question:
    path = ".".join([chain[0].subject.replace(" ", "_"), *(fact.relation for fact in chain)])
    metadata = {
        "hops": len(chain),
        "chain": [[fact.subject, fact.relation, fact.object] for fact in chain],
    }
    return Question(f"world:{split}:{path}", text, (chain[-1].object,), metadata)


def sample_questions(world: World, split: str, *, each: int, seed: int) -> list[Question]:
    """`each` one-hop and `each` two-hop questions of a split, shuffled.

    Raises:
        ValueError: the split has fewer questions of a kind.
    """
    rng = random.Random(f"questions {split} {seed}")
    chosen = []
    for kind in (one_hop_questions, two_hop_questions):
        pool = list(kind(world, split, rng))
        if len(pool) < each:
            raise ValueError(
                f"The {split} split has only {len(pool)} questions of a kind, {each} are asked "
                "for: enlarge data.world_people or ask for fewer."
            )
        chosen += rng.sample(pool, each)
    rng.shuffle(chosen)
    return chosen


class HasPassages(Protocol):
    """A world of any kind."""

    def titled_passages(self) -> list[tuple[str, str]]:
        """Title and text of each passage, in corpus order."""
        ...


def write_corpus(world: HasPassages, path: Path) -> None:
    """Writes the passages as corpus JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for index, (title, text) in enumerate(world.titled_passages()):
            row = {"id": str(index), "contents": f'"{title}"\n{text}'}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_questions(questions: list[Question], path: Path) -> None:
    """Writes questions as FlashRAG JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for question in questions:
            row = {
                "id": question.id,
                "question": question.question,
                "golden_answers": list(question.golden_answers),
                "metadata": question.metadata,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

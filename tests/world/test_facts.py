"""The fictional world: what must hold of any draw of it."""

import collections
import itertools
import random

import pytest

from sr1_jax.data.questions import read_questions
from sr1_jax.retrieval.corpus import read_corpus
from sr1_jax.world.facts import (
    RELATIONS,
    SPLITS,
    TWO_HOPS,
    build_world,
    one_hop_questions,
    sample_questions,
    two_hop_questions,
    write_corpus,
    write_questions,
)

PEOPLE = 64


@pytest.fixture(scope="module")
def world():
    return build_world(0, people=PEOPLE)


@pytest.fixture(scope="module")
def changed():
    """Other facts over the same entities."""
    return build_world(0, facts_seed=9, people=PEOPLE)


def entities(world, split):
    """Names by kind: every subject, and every object that is itself an entity."""
    names = collections.defaultdict(set)
    for fact in world.facts:
        if fact.split == split:
            relation = RELATIONS[fact.relation]
            names[relation.subject].add(fact.subject)
            if relation.object:
                names[relation.object].add(fact.object)
    return names


def all_questions(world, split):
    rng = random.Random(1)
    return [*one_hop_questions(world, split, rng), *two_hop_questions(world, split, rng)]


def test_a_seed_decides_everything(world):
    assert build_world(0, people=PEOPLE) == world
    other = build_world(1, people=PEOPLE)
    assert len(other.facts) == len(world.facts)
    shared = {f.subject for f in other.facts} & {f.subject for f in world.facts}
    assert len(shared) < len({f.subject for f in world.facts}) / 2


def test_each_subject_has_each_relation_of_its_kind_once(world):
    pairs = collections.Counter((f.subject, f.relation) for f in world.facts)
    assert set(pairs.values()) == {1}
    for split in SPLITS:
        for kind, names in entities(world, split).items():
            for relation in RELATIONS.values():
                if relation.subject == kind:
                    assert all((name, relation.name) in pairs for name in names)
    fact = world.facts[17]
    assert world.fact(fact.subject, fact.relation) is fact


def test_splits_share_no_entity_and_facts_do_not_cross(world):
    train, heldout = (entities(world, split) for split in SPLITS)
    assert train.keys() == heldout.keys() == {"person", "town", "company", "book"}
    for kind in train:
        assert not train[kind] & heldout[kind]
        assert len(train[kind]) > len(heldout[kind]) >= 4
    assert len(train["person"] | heldout["person"]) == PEOPLE
    # An entity is of one kind only.
    sizes = [len(names) for split in (train, heldout) for names in split.values()]
    assert len(set().union(*train.values(), *heldout.values())) == sum(sizes)


def test_names_look_alike_across_the_split(world):
    """Every word of a held-out name is known; only the name as a whole is new."""
    train, heldout = (entities(world, split) for split in SPLITS)
    for kind in ("person", "town", "company"):
        words = {word for name in train[kind] for word in name.split()}
        strange = [n for n in heldout[kind] if not words.issuperset(n.split())]
        assert len(strange) <= len(heldout[kind]) / 4


def test_a_passage_says_its_fact(world):
    for fact in world.facts:
        relation = RELATIONS[fact.relation]
        for part in (fact.subject, fact.object, relation.keyword):
            assert part in fact.passage
        assert "{" not in fact.passage
        if relation.values:
            assert fact.object in relation.values
    for relation in RELATIONS.values():
        seen = [f for f in world.facts if f.relation == relation.name]
        wordings = {f.passage.replace(f.subject, "s").replace(f.object, "o") for f in seen}
        assert len(wordings) >= len(relation.passages) > 1


def test_keywords_tell_relations_apart():
    keywords = [relation.keyword for relation in RELATIONS.values()]
    assert len(set(keywords)) == len(keywords)
    for relation in RELATIONS.values():
        for wording in relation.passages:
            assert [k for k in keywords if k in wording] == [relation.keyword]


@pytest.mark.parametrize("facts_seed", [None, 9])
def test_marriage_is_mutual(facts_seed):
    world = build_world(0, facts_seed=facts_seed, people=PEOPLE)
    couples = {f.subject: f.object for f in world.facts if f.relation == "spouse"}
    assert len(couples) == PEOPLE
    for one, other in couples.items():
        assert couples[other] == one != other


def test_changed_facts_keep_names_order_and_splits(world, changed):
    def frame(w):
        return [(f.subject, f.relation, f.split) for f in w.facts]

    assert frame(changed) == frame(world)
    same = sum(a.object == b.object for a, b in zip(world.facts, changed.facts))
    assert same < len(world.facts) / 4
    for split in SPLITS:
        assert entities(changed, split) == entities(world, split)


def test_changed_facts_keep_the_questions(world, changed):
    for split in SPLITS:
        old, new = all_questions(world, split), all_questions(changed, split)
        assert [q.id for q in old] == [q.id for q in new]
        assert [q.question for q in old] == [q.question for q in new]
        assert sum(a.golden_answers != b.golden_answers for a, b in zip(old, new)) > len(old) / 2


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_follows_from_its_facts(world, split):
    questions = all_questions(world, split)
    facts = {(f.subject, f.relation): f for f in world.facts if f.split == split}
    per_hops = collections.Counter(q.metadata["hops"] for q in questions)
    bridges = [r for f in facts.values() for r, _ in TWO_HOPS if r == f.relation]
    assert per_hops == {1: len(facts), 2: len(bridges)}
    assert len({q.id for q in questions}) == len(questions)
    for question in questions:
        chain = question.metadata["chain"]
        assert len(chain) == question.metadata["hops"]
        for subject, relation, answer in chain:
            assert facts[subject, relation].object == answer
        for (_, _, answer), (subject, _, _) in itertools.pairwise(chain):
            assert answer == subject
        assert question.golden_answers == (chain[-1][2],)
        assert chain[0][0] in question.question
        assert question.id.startswith(f"world:{split}:")
        # Neither bridge nor answer is given away, unless the chain ends where it began: somebody
        # may happen to be mayor of the town of their birth.
        for _, _, answer in chain:
            assert answer not in question.question or answer == chain[0][0]


def test_two_hops_fit_and_go_nowhere_in_circles():
    for first, second in TWO_HOPS:
        assert RELATIONS[first].object == RELATIONS[second].subject
    assert ("spouse", "spouse") not in TWO_HOPS and ("spouse", "birthplace") in TWO_HOPS
    fitting = [
        (a, b) for a in RELATIONS for b in RELATIONS if RELATIONS[a].object == RELATIONS[b].subject
    ]
    assert sorted(TWO_HOPS) == sorted(set(fitting) - {("spouse", "spouse")})


def test_sampled_questions(world):
    got = sample_questions(world, "heldout", each=20, seed=3)
    hops = [q.metadata["hops"] for q in got]
    assert collections.Counter(hops) == {1: 20, 2: 20}
    assert hops != sorted(hops)
    assert len({q.id for q in got}) == 40
    assert got == sample_questions(world, "heldout", each=20, seed=3)
    assert got != sample_questions(world, "heldout", each=20, seed=4)
    with pytest.raises(ValueError, match=r"heldout split has only .* 100000 are asked for"):
        sample_questions(world, "heldout", each=100_000, seed=3)


def test_files_read_back(world, tmp_path):
    write_corpus(world, tmp_path / "corpus.jsonl")
    rows = list(read_corpus(tmp_path / "corpus.jsonl"))
    assert rows == [(str(i), f.subject, f.passage) for i, f in enumerate(world.facts)]
    questions = sample_questions(world, "train", each=5, seed=0)
    write_questions(questions, tmp_path / "questions.jsonl")
    assert read_questions(tmp_path / "questions.jsonl") == questions


@pytest.mark.parametrize("people", [0, 16, 48, 65, 72, 976, 160_000])
def test_sizes_that_do_not_work_are_refused(people):
    with pytest.raises(ValueError, match=rf"data\.world_people must be .*, not {people}"):
        build_world(0, people=people)

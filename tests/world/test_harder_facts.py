"""The harder world: what must hold of any draw of it, and that its passages can be decided."""

import collections
import itertools
import random
import re

import pytest

from sr1_jax.data.questions import read_questions
from sr1_jax.retrieval.corpus import read_corpus
from sr1_jax.world.facts import SPLITS, write_corpus, write_questions
from sr1_jax.world.harder.facts import (
    CHANGING,
    FACT,
    HARDER_RELATIONS,
    OUTDATED,
    RUMOUR,
    build_harder_world,
)
from sr1_jax.world.harder.questions import (
    COMPARED,
    SHARES,
    options,
    questions_by_kind,
    sample_harder_questions,
)

PEOPLE = 160


@pytest.fixture(scope="module")
def world():
    return build_harder_world(0, people=PEOPLE)


@pytest.fixture(scope="module")
def changed():
    return build_harder_world(0, facts_seed=9, people=PEOPLE)


@pytest.fixture(scope="module")
def pools(world):
    return {split: questions_by_kind(world, split, random.Random(1)) for split in SPLITS}


def subjects(world, split):
    found = {(s.subject, HARDER_RELATIONS[s.relation].subject) for s in world.statements
             if s.split == split}  # fmt: skip
    found |= {(e, HARDER_RELATIONS[r].subject) for e, r, of in world.absent if of == split}
    return found


def read_by_rule(world, subject, relation):
    """What a reader finds who knows nothing but the corpus and the two rules: the objects of
    passages on the subject's page that are neither a rumour nor over."""
    found = []
    for title, text in world.titled_passages():
        if title != subject or re.match(r"Rumour: |Until \d{4}: ", text):
            continue
        plain = re.sub(r"^Since \d{4}: ", "", text)
        for wording in HARDER_RELATIONS[relation].passages:
            pattern = re.escape(wording).replace(r"\{s\}", re.escape(subject))
            values = HARDER_RELATIONS[relation].values
            some = "|".join(values) if values else "[A-Z][a-z]+ [A-Z][a-z]+"
            if match := re.fullmatch(pattern.replace(r"\{o\}", f"({some})"), plain):
                found.append(match[1])
    return found


def test_a_seed_decides_everything(world, changed):
    assert build_harder_world(0, people=PEOPLE) == world
    other = build_harder_world(1, people=PEOPLE)
    assert len(subjects(other, "train") & subjects(world, "train")) < PEOPLE / 2
    # Other facts, of the same entities, and others absent.
    for split in SPLITS:
        assert subjects(changed, split) == subjects(world, split)
    assert changed.absent != world.absent
    truth = {(s.subject, s.relation): s.object for s in world.statements if s.kind == FACT}
    other = {(s.subject, s.relation): s.object for s in changed.statements if s.kind == FACT}
    both = truth.keys() & other.keys()
    assert sum(truth[key] == other[key] for key in both) < len(both) / 4


def test_each_fact_is_stated_once_or_absent(world):
    facts = collections.Counter((s.subject, s.relation) for s in world.statements if s.kind == FACT)
    assert set(facts.values()) == {1}
    absent = {(subject, relation) for subject, relation, _ in world.absent}
    assert len(absent) == len(world.absent) and not absent & facts.keys()
    for split in SPLITS:
        for subject, kind in subjects(world, split):
            for relation in HARDER_RELATIONS.values():
                if relation.subject == kind:
                    key = subject, relation.name
                    assert (key in facts) != (key in absent)
    assert 0.08 < len(absent) / (len(absent) + len(facts)) < 0.18


def test_the_corpus_alone_decides_every_fact(world):
    """The rule finds the fact, and of what is absent nothing."""
    for statement in world.statements[::7]:
        if statement.kind == FACT:
            assert read_by_rule(world, statement.subject, statement.relation) == [statement.object]
    for subject, relation, _ in world.absent:
        assert read_by_rule(world, subject, relation) == []
        assert world.fact(subject, relation) is None


def test_what_misleads_is_marked_and_wrong(world):
    by_key = collections.defaultdict(list)
    for statement in world.statements:
        by_key[statement.subject, statement.relation].append(statement)
    kinds = collections.Counter()
    for (subject, relation), those in by_key.items():
        facts = [s for s in those if s.kind == FACT]
        others = [s for s in those if s.kind != FACT]
        assert len(facts) <= 1 and len(others) <= 1
        assert world.misled(subject, relation) == bool(others)
        for other in others:
            changes = relation in CHANGING
            assert other.kind == (OUTDATED if changes else RUMOUR)
            assert re.match(r"Until \d{4}: " if changes else "Rumour: ", other.passage)
            assert [other.object] != [fact.object for fact in facts]
            if facts and changes:  # the correction begins in the year in which the other ends
                until, since = other.passage[:11], facts[0].passage[:11]
                assert until.replace("Until", "Since") == since
            kinds[other.kind, bool(facts)] += 1
        if not others:
            assert not re.match(r"Rumour|Until|Since", facts[0].passage)
    assert len(kinds) == 4 and min(kinds.values()) > 5


def test_passages_say_what_they_state_in_the_words_of_a_search(world):
    keywords = {relation.keyword for relation in HARDER_RELATIONS.values()}
    for statement in world.statements:
        keyword = HARDER_RELATIONS[statement.relation].keyword
        before, _, after = statement.passage.rpartition(statement.object)
        assert after == "." and keyword in before and statement.subject in before
        assert {word for word in keywords if word in statement.passage} == {keyword}
    assert len({s.passage for s in world.statements}) == len(world.statements)


def test_names_look_alike(world):
    """Each word of a held-out person's name is that of many, of both splits."""
    people = {
        split: {name for name, kind in subjects(world, split) if kind == "person"}
        for split in SPLITS
    }
    everybody = people["train"] | people["heldout"]
    shared = collections.Counter(word for name in everybody for word in name.split())
    assert min(shared[word] for name in people["heldout"] for word in name.split()) >= 2
    known = {word for name in people["train"] for word in name.split()}
    strange = [name for name in people["heldout"] if not known.issuperset(name.split())]
    assert len(strange) < len(people["heldout"]) / 10


def test_splits_share_no_entity_and_facts_do_not_cross(world):
    train, heldout = ({name for name, _ in subjects(world, split)} for split in SPLITS)
    assert not train & heldout and len(train) > 2 * len(heldout) > 0
    for statement in world.statements:
        own = train if statement.split == "train" else heldout
        assert statement.subject in own
        if HARDER_RELATIONS[statement.relation].object:
            assert statement.object in own


def test_other_training_names_never_meet_the_held_out_ones():
    """What traces show of other worlds gives nothing away."""
    one, other = (build_harder_world(0, people=64, names_seed=n) for n in (1, 2))
    heldout = subjects(one, "heldout")
    assert heldout == subjects(other, "heldout")
    assert not {name for name, _ in heldout} & {name for name, _ in subjects(other, "train")}
    assert subjects(one, "train") != subjects(other, "train")


# Questions


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_follows_from_its_facts(world, pools, split):
    ids = [question.id for pool in pools[split].values() for question in pool]
    assert len(set(ids)) == len(ids)
    entities = {name for name, _ in subjects(world, split)}
    for kind, pool in pools[split].items():
        assert pool
        for question in pool:
            metadata = question.metadata
            chain = [tuple(link) for link in metadata["chain"]]
            assert metadata["kind"] == kind and metadata["hops"] == len(chain)
            assert metadata["misled"] == sum(world.misled(s, r) for s, r, _ in chain)
            assert question.id.startswith(f"world:{split}:")
            for subject, relation, found in chain:
                fact = world.fact(subject, relation)
                assert (fact.object if fact else None) == found
                assert subject in entities
            assert chain[0][0] in question.question


def test_chains_lead_on_and_never_back(pools):
    lengths = {"one_hop": {1}, "misled": {1}, "two_hop": {2}, "three_hop": {3},
               "unanswerable": {1, 2}}  # fmt: skip
    for kind, allowed in lengths.items():
        seen = set()
        for question in pools["train"][kind]:
            chain = question.metadata["chain"]
            seen.add(len(chain))
            for (_, _, found), (subject, _, _) in itertools.pairwise(chain):
                assert found == subject
            passed = [chain[0][0], *(found for _, _, found in chain)]
            assert len(set(passed)) == len(passed)
            for found in filter(None, passed[1:]):
                assert found not in question.question
            want = "not known" if kind == "unanswerable" else chain[-1][2]
            assert question.golden_answers == (want,)
            assert (chain[-1][2] is None) == (kind == "unanswerable")
        assert seen == allowed


def test_misled_questions_are_asked_like_others(pools):
    for pool, misled in (("one_hop", 0), ("misled", 1)):
        assert {question.metadata["misled"] for question in pools["train"][pool]} == {misled}
    assert {0, 1} <= {question.metadata["misled"] for question in pools["train"]["two_hop"]}


@pytest.mark.parametrize("split", SPLITS)
def test_comparisons(pools, split):
    answers = collections.defaultdict(collections.Counter)
    for question in pools[split]["comparison"]:
        (a, relation, of_a), (b, of_b_relation, of_b) = question.metadata["chain"]
        assert relation == of_b_relation and a != b
        assert a in question.question and b in question.question
        if relation in ("graduation", "publication"):
            assert of_a != of_b
            want = a if int(of_a) < int(of_b) else b
            assert options(question) == (a, b)
        else:
            want = "yes" if of_a == of_b else "no"
            assert options(question) == ("yes", "no")
        assert question.golden_answers == (want,)
        answers[relation][options(question).index(want)] += 1
    assert set(answers) == set(COMPARED)
    # Neither the first nor yes is the better guess.
    for counts in answers.values():
        assert counts[0] / counts.total() == pytest.approx(0.5, abs=0.25)


def test_samples_have_the_shares_of_the_kinds(world):
    got = sample_harder_questions(world, "train", at_most=200, seed=3)
    kinds = collections.Counter(question.metadata["kind"] for question in got)
    assert kinds == {kind: round(200 * share) for kind, share in SHARES.items()}
    assert sum(SHARES.values()) == pytest.approx(1)
    assert got == sample_harder_questions(world, "train", at_most=200, seed=3)
    assert got != sample_harder_questions(world, "train", at_most=200, seed=4)
    everything = sample_harder_questions(world, "heldout", at_most=100_000, seed=3)
    assert len({question.id for question in everything}) == len(everything) > 200


def test_files_read_back(world, tmp_path):
    write_corpus(world, tmp_path / "corpus.jsonl")
    rows = list(read_corpus(tmp_path / "corpus.jsonl"))
    assert rows == [(str(i), s.subject, s.passage) for i, s in enumerate(world.statements)]
    questions = sample_harder_questions(world, "train", at_most=40, seed=0)
    write_questions(questions, tmp_path / "questions.jsonl")
    assert read_questions(tmp_path / "questions.jsonl") == questions


@pytest.mark.parametrize("people", [0, 65, 976])
def test_sizes_that_do_not_work_are_refused(people):
    with pytest.raises(ValueError, match=rf"data\.world_people must be .*, not {people}"):
        build_harder_world(0, people=people)

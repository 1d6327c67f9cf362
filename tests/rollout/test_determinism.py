"""The same trajectories, id for id, whatever runs beside them: over 510 of them."""

import numpy as np
import pytest

from sr1_jax.retrieval.base import Passage
from sr1_jax.sharding import make_mesh

pytestmark = pytest.mark.slow


def passages(query, rank):
    return Passage(f"{query}-1", "T1", f"on {query[:12]}", 1.0)


@pytest.fixture(scope="module")
def asked():
    golden = ["Bob", "P", "1"]
    return [
        {"id": f"q{i}", "question": f"Who is {i} " + "of " * (i % 9), "golden_answers": golden}
        for i in range(170)
    ]


@pytest.fixture(scope="module")
def sixteen_slots(make_engine, fake_retriever, asked):
    return rows_of(run(make_engine(fake_retriever(passages), slots=16, passages=1), asked))


def run(engine, asked):
    return engine.run(asked, seed=1, samples=3)


def rows_of(run):
    return {
        (t.question_id, t.sample): (t.ids.tolist(), t.mask.tolist(), t.searches, t.status)
        for t in run
    }


def assert_equal(got, want):
    assert got.keys() == want.keys() and len(want) == 510
    different = [key for key in want if got[key] != want[key]]
    assert not different


@pytest.mark.parametrize("slots", [4, 64])
def test_any_number_of_slots(make_engine, fake_retriever, asked, sixteen_slots, slots):
    engine = make_engine(fake_retriever(passages), slots=slots, passages=1)
    assert_equal(rows_of(run(engine, asked)), sixteen_slots)


def test_any_order_and_without_sharing(make_engine, fake_retriever, asked, sixteen_slots):
    shuffled = [asked[i] for i in np.random.default_rng(5).permutation(len(asked))]
    engine = make_engine(fake_retriever(passages), slots=24, passages=1, turnover=0.5)
    assert_equal(rows_of(run(engine, shuffled)), sixteen_slots)
    plain = make_engine(fake_retriever(passages), slots=24, passages=1, share_prefixes=False)
    assert_equal(rows_of(run(plain, shuffled)), sixteen_slots)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_any_mesh(make_engine, fake_retriever, asked, sixteen_slots, shape):
    retriever = fake_retriever(passages)
    engine = make_engine(retriever, slots=32, passages=1, mesh=make_mesh(*shape))
    assert_equal(rows_of(run(engine, asked)), sixteen_slots)


def test_two_processes(run_cluster, make_config, asked, sixteen_slots):
    config = make_config(slots=16, passages=1)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    runs = run_cluster(devices=2, tensor=1, rollout=plain, questions=asked, samples=3)
    for rows, _, _ in runs:  # both have those of all
        got = {
            tuple(row["key"]): (row["ids"], row["mask"], row["searches"], row["status"])
            for row in rows
        }
        assert_equal(got, sixteen_slots)


def test_no_compilation_over_a_thousand(make_engine, fake_retriever, asked):
    engine = make_engine(fake_retriever(passages), slots=16, passages=1)
    engine.warm_up()
    for seed in range(2):
        engine.run(asked, seed=seed, samples=3)
        assert engine.stats["compilations"] == 0

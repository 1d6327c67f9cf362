"""Whole tiny runs with each kind of retriever, a flag away from the plain one."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_config import get_config

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.retrieval import open_retriever
from sr1_jax.retrieval.web_retriever import UsedUpError
from sr1_jax.train import train

sys.path.insert(0, str(Path(__file__).parents[1] / "retrieval"))
from servers import served
from web_search import KEY, WebSearch

# Of runs that find the same passages.
SAME = ("reward", "em", "searches", "policy/loss", "context_tokens")


def run(workdir, base=None, **retrieval):
    """The metrics of a run of two steps, from a base policy that has learned to search."""
    config = get_config()
    config.warm_start.phases = ()
    if base is None:
        read = dict(mix=dict(direct=0.0, explore=0.0), arbitrary=False)
        config.warm_start.phases = (
            dict(name="read", traces=200, steps=120, learning_rate=1e-2) | read,
        )
    else:
        config.base.workdir = str(base)
    config.steps = 2
    config.questions = 8
    config.rollout.max_segment_tokens = 24
    config.rollout.max_context_tokens = 160
    config.learner.length_buckets = (160,)
    config.evaluation.every = 0
    config.evaluation.final_questions = 0
    config.retrieval.update_from_flattened_dict(retrieval)
    train(config, workdir)
    rows = read_metrics(workdir)
    assert len(rows) == 2 and total(rows, "search_calls") > 0
    return rows


def total(rows, key):
    return sum(row.get(f"rollout/{key}", 0.0) for row in rows)


def trajectories(workdir):
    files = (workdir / "trajectories").glob("*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("base") / "run"


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """A run that searches its own BM25 index: its folder and metrics."""
    run(base)
    workdir = tmp_path_factory.mktemp("plain") / "run"
    return SimpleNamespace(workdir=workdir, rows=run(workdir, base, kind="bm25"))


def assert_same(rows, plain):
    for row, other in zip(rows, plain.rows, strict=True):
        assert {key: row[key] for key in SAME} == {
            key: pytest.approx(other[key], abs=1e-6) for key in SAME
        }


@pytest.mark.slow
def test_nothing_is_found(base, plain, tmp_path):
    run(tmp_path / "run", base, kind="empty")
    assert any(any(t["passage_ids"]) for t in trajectories(plain.workdir))
    assert not any(any(t["passage_ids"]) for t in trajectories(tmp_path / "run"))


@pytest.mark.slow
def test_searches_take_longer(base, plain, tmp_path):
    rows = run(tmp_path / "run", base, delay_seconds=0.2)
    assert_same(rows, plain)
    assert all(row["rollout/search_seconds"] > 0.2 for row in rows if total([row], "search_calls"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_results_are_kept(base, plain, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rates = []
    for name in ("first", "second"):
        rows = run(tmp_path / name, base, **{"cache.kind": kind})
        assert_same(rows, plain)
        hits, misses = (total(rows, f"search_cache_{what}") for what in ("hits", "misses"))
        assert hits + misses == total(rows, "search_calls")
        assert total(rows, "search_cache_errors") == 0
        rates.append(hits / (hits + misses))
    # What one run found, the next one finds on disk.
    assert rates[0] < 1
    assert rates[1] == (1 if kind == "disk" else rates[0])


@pytest.mark.slow
def test_passages_are_replaced(base, plain, tmp_path):
    rows = run(tmp_path / "run", base, **{"noise.start": 0.9})
    assert total(rows, "search_noise_passages") > 0
    assert total(rows, "search_noise_replaced") / total(rows, "search_noise_passages") > 0.5


@pytest.mark.slow
def test_over_http(base, plain, tmp_path):
    """The same run as one that searches the index itself."""
    retriever = open_retriever(get_config().retrieval, base / "data" / "corpus.jsonl")
    with served(retriever) as address:
        rows = run(tmp_path / "run", base, **{"kind": "http", "http.urls": address})
    assert_same(rows, plain)
    # Queries that are there at the same time share a request.
    assert 0 < total(rows, "search_http_requests") <= total(rows, "search_calls")
    assert total(rows, "search_http_attempts") == total(rows, "search_http_requests")


@pytest.mark.slow
def test_over_the_web(base, plain, tmp_path, monkeypatch, capsys):
    """The same run again: the snippets are the passages."""
    monkeypatch.setenv("BRAVE_API_KEY", KEY)
    with WebSearch(open_retriever(get_config().retrieval, base / "data" / "corpus.jsonl")) as web:
        settings = {"web.url": web.url, "web.cost_per_request": 0.25, "web.max_requests": 1000}
        rows = run(tmp_path / "run", base, kind="web", **settings)
    assert_same(rows, plain)
    spent = total(rows, "search_web_cost")
    # The first request, which looks whether the key is good, belongs to no step.
    assert 0 < spent == 0.25 * total(rows, "search_web_requests") == 0.25 * (len(web.bodies) - 1)
    told = f"Web search: {len(web.bodies)} requests, {len(web.bodies)} of 1,000 allowed"
    assert told in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["search"]["web_requests"] == len(web.bodies)


@pytest.mark.slow
def test_a_run_stops_when_its_requests_are_used_up(base, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAVE_API_KEY", KEY)
    with WebSearch(open_retriever(get_config().retrieval, base / "data" / "corpus.jsonl")) as web:
        settings = {"web.url": web.url, "web.max_requests": 2}
        with pytest.raises(UsedUpError, match="2 of 2 allowed"):
            run(tmp_path / "stops", base, kind="web", **settings)
        settings["web.when_used_up"] = "empty"
        rows = run(tmp_path / "goes on", base, kind="web", **settings)
    assert len(web.bodies) == 4 and total(rows, "search_web_unanswered") > 0

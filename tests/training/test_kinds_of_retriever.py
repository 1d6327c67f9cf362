"""Whole tiny runs with each kind of retriever, a flag away from the plain one."""

import json
import sys
from pathlib import Path

import pytest

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.retrieval import open_retriever
from sr1_jax.train import train

sys.path.insert(0, str(Path(__file__).parents[1] / "retrieval"))
from servers import served


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"kind": "empty"},
        {"delay_seconds": 0.01},
        {"cache.kind": "memory"},
        {"cache.kind": "disk"},
        {"noise.start": 0.9},
    ],
    ids=str,
)
def test_by_one_flag(tiny_config, tmp_path, monkeypatch, flags):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for key, value in flags.items():
        tiny_config.retrieval.update_from_flattened_dict({key: value})
    train(tiny_config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == tiny_config.steps
    if "cache.kind" in flags:
        assert all(0 <= row["rollout/search_cache_hit_rate"] <= 1 for row in rows if searched(row))
    if "noise.start" in flags:
        shares = [row["rollout/search_noise_share"] for row in rows if searched(row)]
        assert not shares or max(shares) > 0.5
    if flags == {"kind": "empty"}:
        assert json.loads((tmp_path / "run" / "result.json").read_text())["after"]


def searched(row):
    return row["rollout/search_calls"] > 0


@pytest.mark.slow
def test_over_http(finished, derived, tmp_path):
    """The same run as one that searches the index itself."""
    folders = [path.parent for path in finished.workdir.glob("data/index-*/index.json")]
    corpora = {json.loads((f / "index.json").read_text())["corpus"]: f for f in folders}
    config = derived
    config.steps = 2
    train(config, tmp_path / "local")
    retriever = open_retriever(finished.config.retrieval, index=corpora["corpus.jsonl"])
    with served(retriever) as address:
        config.retrieval.kind, config.retrieval.http.urls = "http", address
        train(config, tmp_path / "http")
    local, over = (read_metrics(tmp_path / name) for name in ("local", "http"))
    for one, other in zip(local, over, strict=True):
        for key in ("reward", "em", "searches", "policy/loss", "context_tokens"):
            assert one[key] == pytest.approx(other[key], abs=1e-6)
    assert all(row["rollout/search_http_attempts"] == row["rollout/search_calls"] for row in over)

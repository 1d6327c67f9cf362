"""docs/metrics.md has every metric that a run logs."""

import re
from pathlib import Path

from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.training.alarms import WATCHED
from sr1_jax.training.goodput import Goodput
from sr1_jax.training.step_agreement import _DEVICE_STATS

DOCS = Path(__file__).parents[2] / "docs"


def listed(page, prefix=""):
    """Patterns of the metrics in the first column of a page's tables; <…> stands for anything."""
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    names = [prefix + name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return [re.sub(r"<[a-z]+>", ".+", re.escape(name)) for name in names]


def unknown(keys):
    patterns = listed("metrics.md") + listed("rollouts.md", "rollout/")
    patterns += ["dev/(greedy|sampled)/.+"]
    return [key for key in keys if not any(re.fullmatch(p, key) for p in patterns)]


def test_what_a_run_logs(finished):
    keys = {key for row in read_metrics(finished.workdir) for key in row}
    assert len(keys) > 70 and unknown(keys) == []


def test_what_only_some_runs_log():
    with Goodput() as goodput:
        keys = [f"memory/{name}_gib" for name in _DEVICE_STATS] + list(goodput.metrics({}))
    keys += [f"guards/deviation/{watched.name}" for watched in WATCHED]
    keys += ["policy/kl_loss", "policy/dual_clip_fraction", "policy/displacement_loss"]
    keys += ["importance_mean", "importance_capped", "em/nq", "em/searches_4", "curriculum/rate"]
    assert unknown(keys) == []


def test_the_check_can_fail():
    assert unknown(["policy/made_up", "em"]) == ["policy/made_up"]

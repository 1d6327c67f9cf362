"""The table of an experiment, from results as evaluate writes them, against means by hand."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from sr1_jax.evaluation.score_table import ScoreTable, score_path, write_scores
from sr1_jax.experiments.plan import Plan, Row
from sr1_jax.experiments.report import gains, print_table, table_of, write_table

SEEDS, SETS, COUNT = (0, 1), ("dev_nq", "dev_hotpotqa"), 40
ROWS = {
    "ppo": Row("Search-R1, PPO", "search", "ppo"),
    "rag": Row("RAG", "rag", "base", of_base=True),
    "other": Row("Another", "search", "other"),
}


def values_of(row, seed, name):
    rng = np.random.default_rng([seed, SETS.index(name)])
    hard = rng.random(COUNT)
    skill = {"ppo": 0.8, "rag": 0.4, "other": 0.78}[row] - 0.1 * seed
    return (hard < skill).astype(float)


def write_result(folder, row, name, values, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "questions": name,
        "method": ROWS[row].method,
        "policy": "base" if ROWS[row].of_base else "step 5",
        "greedy": True,
        "limit": 0,
        "count": COUNT,
        "em": float(values.mean()),
        "em_standard_error": 0.1,
        "em_2_hop": float(values[:10].mean()),
        "f1": float(values.mean()) + 0.05,
        "searches": 1.5,
    } | changes
    path = folder / f"{name}.{result['method']}.{changes.get('limit', 0)}.json"
    path.write_text(json.dumps(result))
    ids = tuple(f"{name}:{i}" for i in range(COUNT))
    table = ScoreTable(ids, (0,) * COUNT, {"em": np.asarray(values)})
    write_scores(score_path(path), table)


@pytest.fixture
def plan(tmp_path):
    plan = Plan(tmp_path, SEEDS, {}, reference="ppo")
    plan.rows = dict(ROWS)
    for seed in SEEDS:
        for row in ROWS:
            folder = plan.workdir(seed, ROWS[row].run) / "eval"
            for name in SETS:
                write_result(folder, row, name, values_of(row, seed, name))
        # What is not part of the table: another limit, an average, what was sampled.
        folder = plan.workdir(seed, "ppo") / "eval"
        write_result(folder, "ppo", "dev_nq", np.zeros(COUNT), limit=3)
        (folder / "average.json").write_text(json.dumps({"files": [], "method": "search"}))
        write_result(folder, "ppo", "dev_musique", np.zeros(COUNT), greedy=False)
    return plan


def mean(row, seeds=SEEDS, sets=SETS):
    return np.mean([values_of(row, seed, name).mean() for seed in seeds for name in sets])


def test_means_are_those_by_hand(plan):
    table = table_of(plan)
    assert table["sets"] == sorted(SETS) and table["count"] == 160
    for key in ROWS:
        row = table["rows"][key]
        assert row["em"][0] == pytest.approx(mean(key))
        assert row["em"][1] < row["em"][0] < row["em"][2]
        assert row["by_set"]["dev_nq"] == pytest.approx(mean(key, sets=["dev_nq"]))
        assert row["by_seed"]["1"] == pytest.approx(mean(key, seeds=[1]))
        assert row["others"]["searches"] == 1.5
    parts = [values_of("rag", seed, name)[:10].mean() for seed in SEEDS for name in SETS]
    assert table["rows"]["rag"]["parts"] == {"em_2_hop": pytest.approx(np.mean(parts))}


def test_differences_are_paired(plan):
    """`other` answers nearly what `ppo` answers, question by question: their difference is known
    far better than either mean."""
    table = table_of(plan)
    other, rag = table["rows"]["other"], table["rows"]["rag"]
    assert other["difference"][0] == pytest.approx(mean("other") - mean("ppo"))
    width = other["difference"][2] - other["difference"][1]
    assert width < 0.6 * (other["em"][2] - other["em"][1])
    assert rag["difference"][2] < 0
    assert "difference" not in table["rows"]["ppo"]


def test_gains_read_as_the_paper_tells_them(plan):
    lines = gains(table_of(plan)).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Search-R1, PPO over RAG", "Search-R1, PPO over Another",
    ]  # fmt: skip
    relative = mean("ppo") / mean("rag") - 1
    assert lines[0].endswith(f"; {relative:+.0%}") and "not resolved" not in lines[0]


def test_the_table_is_written_and_fits_80_columns(plan):
    table = write_table(plan, "table")
    assert json.loads((plan.folder / "table.json").read_text()) == table
    text = (plan.folder / "table.md").read_text()
    assert "| Search-R1, PPO |" in text and "Search-R1, PPO over RAG" in text
    out = io.StringIO()
    print_table(table, Console(file=out, width=80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "Search-R1, PPO" in out.getvalue()


def test_a_missing_result_is_named(plan):
    for path in (plan.workdir(1, "other") / "eval").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"seed_1/other/eval has no result of search"):
        table_of(plan)


def test_a_missing_file_of_scores_is_named(plan):
    for path in (plan.workdir(1, "other") / "eval").glob("*.npz"):
        path.unlink()
    with pytest.raises(ValueError, match=r"scores\.npz: there is no such file of scores"):
        table_of(plan)

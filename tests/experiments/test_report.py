"""The table of an experiment, from results as evaluate writes them, against means by hand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sr1_jax.evaluation.intervals import bootstrap_macro
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


def write_result(folder, row, name, values, *, same=False, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    seed = folder.parent.parent.name
    result = {
        "questions": name,
        "questions_sha256": f"{name} {'' if same else seed}",
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
    return path


def make_plan(folder, *, same=False):
    """A plan whose evaluations are over; `same`: the seeds answered the same questions."""
    plan = Plan(folder, SEEDS, {}, reference="ppo")
    plan.rows = dict(ROWS)
    for seed in SEEDS:
        listed = {}
        for row in ROWS:
            run = ROWS[row].run
            results = plan.workdir(seed, run) / "eval"
            for name in SETS:
                values = values_of(row, seed, name)
                path = write_result(results, row, name, values, same=same)
                listed.setdefault(run, []).append(str(path))
        # What lies beside them is not part of the table.
        write_result(plan.workdir(seed, "ppo") / "eval", "ppo", "dev_nq", np.zeros(COUNT), limit=3)
        for run, paths in listed.items():
            plan.results_list(seed, run).write_text(json.dumps(paths))
    return plan


@pytest.fixture
def plan(tmp_path):
    return make_plan(tmp_path)


def mean(row, seeds=SEEDS, sets=SETS):
    return np.mean([values_of(row, seed, name).mean() for seed in seeds for name in sets])


def test_means_are_those_by_hand(plan):
    table = table_of(plan)
    assert table["sets"] == list(SETS) and table["count"] == 160
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
    assert "| Search-R1, PPO |" in text and "\n- Search-R1, PPO over RAG" in text
    out = io.StringIO()
    print_table(table, Console(file=out, width=80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "Search-R1, PPO" in out.getvalue()


def test_a_question_is_drawn_with_the_values_of_all_seeds(tmp_path):
    """Three seeds on the same questions are not three times the questions: intervals are those of
    the means by question."""
    plan = make_plan(tmp_path, same=True)
    table = table_of(plan)
    assert table["count"] == 2 * COUNT
    by_question = [
        np.mean([values_of("rag", seed, name) for seed in SEEDS], axis=0) for name in SETS
    ]
    want = bootstrap_macro([dict(enumerate(values)) for values in by_question])
    got = table["rows"]["rag"]["em"]
    assert got[0] == pytest.approx(want.mean)
    assert got[2] - got[1] == pytest.approx(want.high - want.low, rel=0.1)


def test_sets_of_one_name_are_told_apart_by_their_questions(plan):
    """Two files named dev.jsonl, say: both count."""
    extra = plan.workdir(0, "ppo") / "other"
    for run in ("ppo", "base", "other"):
        row = {"ppo": "ppo", "base": "rag", "other": "other"}[run]
        path = write_result(extra / run, row, "dev_nq", np.ones(COUNT), questions_sha256="b")
        listed = plan.results_list(0, run)
        listed.write_text(json.dumps([*json.loads(listed.read_text()), str(path)]))
    assert table_of(plan)["count"] == 200


def test_a_missing_result_is_named(plan):
    listed = json.loads(plan.results_list(1, "other").read_text())
    (plan.workdir(1, "other") / "eval" / Path(listed[0]).name).unlink()
    with pytest.raises(ValueError, match=r"seed_1/other/eval/.*\.json is missing; evaluate again"):
        table_of(plan)
    plan.results_list(1, "other").unlink()
    with pytest.raises(ValueError, match=r"results_of_experiment\.json is missing: "):
        table_of(plan)


def test_a_missing_file_of_scores_is_named(plan):
    for path in (plan.workdir(1, "other") / "eval").glob("*.npz"):
        path.unlink()
    with pytest.raises(ValueError, match=r"scores\.npz: there is no such file of scores"):
        table_of(plan)

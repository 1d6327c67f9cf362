"""The program that puts finished runs into one table."""

import json

import numpy as np
import pytest

from sr1_jax import compare
from sr1_jax.evaluation.grid import difference_text
from sr1_jax.evaluation.intervals import bootstrap, paired_difference, paired_macro_difference
from sr1_jax.evaluation.score_table import ScoreTable, score_path, write_scores


@pytest.fixture
def finished(tmp_path):
    """Function of (name, EM, changes of result.json) -> the run's workdir. With questions, their
    trajectories are there: the first ones are right."""

    def finish(name, em, *, questions=0, start=0, **changes):
        scores = {
            "greedy/em": em, "greedy/em_1_hop": 0.9, "greedy/em_2_hop": 0.008, "greedy/f1": 0.5,
            "greedy/substring": 0.6, "greedy/searches": 2.5, "greedy/response_tokens": 1234.5,
            "sampled/em": 0.4,
        }  # fmt: skip
        result = {"dev": "heldout", "dev_questions": 400, "questions_sha256": "a", "after": scores}
        (tmp_path / name).mkdir()
        if questions:
            result["dev_questions"] = questions
            rows = (
                {
                    "question_id": f"q{start + n}",
                    "answer": "The Bo" if n < em * questions else None,
                    "golden_answers": ["Al", "bo"],
                }
                for n in range(questions)
            )
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name / "dev_trajectories.jsonl").write_text(text)
        (tmp_path / name / "result.json").write_text(json.dumps(result | changes))
        return str(tmp_path / name)

    return finish


def test_a_table_fits_80_columns(finished, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [finished("demo", 0.8), finished("demo_reinforce_pp", 0.5), finished("rag", 0.25)]
    compare.main(["compare", *runs, f"--output={tmp_path}/table.md"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "400 questions of heldout" in lines[0]
    heading = ["run", "EM", "1-hop", "2-hop", "EM", "F1", "substr", "search", "tokens"]
    assert lines[2].split() == heading
    (row,) = (line.split() for line in lines if line.startswith("demo_reinforce_pp"))
    assert row[1:] == ["0.500", "0.900", "0.008", "0.400", "0.500", "0.600", "2.50", "1234.5"]
    assert lines[-1] == "demo 0.800 against 0.500 of demo_reinforce_pp, the best baseline: +60%."
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("| run | greedy EM | greedy 1-hop | greedy 2-hop | sampled EM |")
    assert "| rag | 0.250 | 0.900 | 0.008 | 0.400 | 0.500 | 0.600 | 2.50 | 1234.5 |" in text
    assert text.endswith(f"\n\n{lines[-1]}\n")


def test_differences_have_intervals(finished, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [finished("demo", 0.75, questions=80), finished("rag", 0.5, questions=80)]
    runs.append(finished("twin", 0.75, questions=80))
    compare.main(["compare", *runs, f"--output={tmp_path}/table.md"])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and max(map(len, lines)) <= 80
    exact = {name: np.arange(80) < share * 80 for name, share in (("demo", 0.75), ("rag", 0.5))}
    gain = paired_difference(exact["demo"], exact["rag"])
    half = f"{bootstrap(exact['demo']).half_width:.3f}"
    row = next(line.split() for line in lines if line.startswith("demo "))
    assert row[:5] == ["demo", "0.750", "0.900", "0.008", half]
    assert lines[-5:] == [
        "±: half the 95% interval of EM, drawn by question.",
        "Differences in exact match, question by question:",
        f"demo less rag: +0.250 [+{gain.low:.3f}, +{gain.high:.3f}]",
        "demo less twin: +0.000 [+0.000, +0.000], not resolved",
        "demo 0.750 against 0.750 of twin, the best baseline: +0%.",
    ]
    text = (tmp_path / "table.md").read_text()
    assert f"| demo | 0.750 | 0.900 | 0.008 | {half} |" in text
    assert text.endswith("".join(f"\n{line}\n" for line in lines[-5:]))


def test_without_trajectories_there_are_no_intervals(finished, capsys):
    runs = [finished("demo", 0.75, questions=8), finished("rag", 0.5, dev_questions=8)]
    runs.append(finished("old", 0.5, questions=8))
    path = compare.Path(runs[2]) / "dev_trajectories.jsonl"
    path.write_text(path.read_text().replace("The Bo", "Bob"))
    compare.main(["compare", *runs])
    out, err = capsys.readouterr()
    assert "Differences" not in out and "±" in out
    assert f"No intervals for {runs[1]}: " in err and "no such file" in err
    assert f"No intervals for {runs[2]}: dev_trajectories.jsonl is not that of result.json." in err


def test_runs_on_questions_of_other_ids_do_not_compare(finished):
    runs = [finished("a", 0.5, questions=8), finished("b", 0.5, questions=8, start=1)]
    with pytest.raises(
        ValueError, match=r"b was evaluated on other questions than .*a: The second"
    ):
        compare.main(["compare", *runs])


@pytest.fixture
def evaluated(tmp_path):
    """Function of (run, method, EM of 40 questions, greedy) -> the file of an evaluation."""

    def evaluate(run, method, em, *, greedy=True):
        folder = tmp_path / run / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        exact = (np.arange(40) < em * 40).astype(float)
        table = ScoreTable(tuple(f"q{n}" for n in range(40)), (0,) * 40, {"em": exact})
        result = {
            "questions": "nq", "questions_sha256": "a", "count": 40, "method": method,
            "policy": "step 2", "greedy": greedy, "em": em, "f1": em, "settings_changed": {},
        }  # fmt: skip
        path = folder / f"nq.{method}.json"
        path.write_text(json.dumps(result))
        write_scores(score_path(path), table)
        return str(path)

    return evaluate


@pytest.mark.parametrize("greedy", [True, False])
def test_evaluations_compare_too(evaluated, capsys, greedy):
    files = [evaluated("a", "search", 0.75, greedy=greedy), evaluated("a", "rag", 0.5)]
    files.append(evaluated("b", "search", 0.25, greedy=greedy))
    compare.main(["compare", *files])
    lines = capsys.readouterr().out.splitlines()
    assert "40 questions of nq" in lines[0]
    assert any(
        line.startswith("a, search, step 2 less a, rag, step 2: +0.250 [+") for line in lines
    )
    assert any(
        line.startswith("a, search, step 2 less b, search, step 2: +0.500") for line in lines
    )
    assert lines[-1] == (
        "a, search, step 2 0.750 against 0.500 of a, rag, step 2, the best baseline: +50%."
    )


def test_averages_over_sets_compare_within_their_sets(evaluated, capsys, tmp_path):
    files = []
    for run, shares in (("a", (0.75, 0.5)), ("b", (0.5, 0.25))):
        names = [
            compare.Path(evaluated(run, method, em)).stem
            for method, em in zip(("one", "two"), shares)
        ]
        mean = json.loads((tmp_path / run / "eval" / f"{names[0]}.json").read_text())
        mean |= {"questions": "one+two", "count": 80, "em": sum(shares) / 2, "results": names}
        files.append(tmp_path / run / "eval" / "one+two.json")
        files[-1].write_text(json.dumps(mean))
    compare.main(["compare", *map(str, files)])
    sets = [
        [np.arange(40) < share * 40 for share in shares] for shares in ((0.75, 0.5), (0.5, 0.25))
    ]
    want = difference_text(paired_macro_difference(*sets))
    assert f"a, one, step 2 less b, one, step 2: {want}" in capsys.readouterr().out.splitlines()
    (tmp_path / "b" / "eval" / f"{names[1]}.scores.npz").unlink()
    compare.main(["compare", *map(str, files)])
    assert f"{names[1]}.scores.npz: there is no such file of scores" in capsys.readouterr().err


def test_what_is_no_evaluation(evaluated, tmp_path):
    good, bad = evaluated("a", "search", 0.75), tmp_path / "table.json"
    for text in ("{oops", '{"methods": []}', "[]"):
        bad.write_text(text)
        with pytest.raises(ValueError, match=r"table\.json is no result of sr1_jax\.evaluate"):
            compare.main(["compare", good, str(bad)])


def test_an_ablation_is_no_baseline(finished, capsys):
    compare.main(["compare", finished("demo", 0.5), finished("demo_no_mask", 0.9)])
    assert "demo 0.500; no baseline is among the others." in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(finished, capsys, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        finished(f"{folder}/demo", 0.5)
    compare.main(["compare", str(tmp_path / "one" / "demo"), str(tmp_path / "two" / "demo")])
    out = capsys.readouterr().out
    assert f"{tmp_path}/one/demo 0.500 against 0.500 of {tmp_path}/two/demo" in out


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        # Runs with 16 and 400 questions gave one table, and a verdict of -75 %.
        (
            {},
            {"dev_questions": 16, "questions_sha256": "b"},
            "on 16 questions of heldout, {} on 400",
        ),
        (
            {},
            {"questions_sha256": "b"},
            "on others of that name and number, {} on 400 questions of",
        ),
        ({"questions_sha256": ""}, {"dev_questions": 16}, "on 16 questions of heldout, {} on 400"),
        ({}, {"dev": "nq", "questions_sha256": None}, "on 400 questions of nq, {} on 400"),
    ],
)
def test_other_questions_do_not_compare(finished, capsys, first, other, message):
    runs = [finished("demo", 0.8, **first), finished("same", 0.8, **first)]
    runs.append(finished("other", 0.2, **other))
    with pytest.raises(ValueError) as error_info:
        compare.main(["compare", *runs])
    assert f"{runs[2]} was evaluated {message.format(runs[0])}" in str(error_info.value)
    assert capsys.readouterr().out == ""


def test_results_of_earlier_versions_compare_by_name_and_number(finished, capsys):
    compare.main(["compare", finished("demo", 0.8, questions_sha256=None), finished("rag", 0.4)])
    assert "+100%" in capsys.readouterr().out


def test_runs_that_cannot_be_compared(finished, tmp_path):
    demo = finished("demo", 0.8)
    for name, text, message in (
        ("unscored", '{"dev_questions": 0}', r"result\.json has no scores: .* no data\.dev"),
        ("damaged", "{oops", r"damaged/result\.json is damaged \(Expecting"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            compare.main(["compare", demo, str(tmp_path / name)])
    (tmp_path / "begun").mkdir()
    with pytest.raises(ValueError, match=r"begun/result\.json does not exist: the run has not"):
        compare.main(["compare", demo, str(tmp_path / "begun")])
    for name in ("none", "demo/eval/mistyped.json"):
        with pytest.raises(ValueError, match=f"{name}: there is no such workdir, nor file of res"):
            compare.main(["compare", demo, str(tmp_path / name)])
    with pytest.raises(
        ValueError, match="at least two workdirs of finished runs, or files of results"
    ):
        compare.main(["compare", demo])

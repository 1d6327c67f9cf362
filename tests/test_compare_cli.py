"""The program that puts finished runs into one table."""

import json

import pytest

from sr1_jax import compare


@pytest.fixture
def finished(tmp_path):
    """Function of (name, EM, changes of result.json) -> the run's workdir."""

    def finish(name, em, **changes):
        scores = {
            "greedy/em": em, "greedy/em_1_hop": 0.9, "greedy/em_2_hop": 0.008, "greedy/f1": 0.5,
            "greedy/substring": 0.6, "greedy/searches": 2.5, "greedy/response_tokens": 1234.5,
            "sampled/em": 0.4,
        }  # fmt: skip
        result = {"dev": "heldout", "dev_questions": 400, "questions_sha256": "a", "after": scores}
        (tmp_path / name).mkdir()
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
    assert lines[2].split() == ["run", "EM", "1-hop", "2-hop", "±", "EM", "F1", "substr", "search"]
    (row,) = (line.split() for line in lines if line.startswith("demo_reinforce_pp"))
    assert row[1:] == ["0.500", "0.900", "0.008", "0.025", "0.400", "0.500", "0.600", "2.50"]
    assert lines[-1] == "demo 0.800 against 0.500 of demo_reinforce_pp, the best baseline: +60%."
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("| run | greedy EM | greedy 1-hop | greedy 2-hop | ± | sampled EM |")
    assert "| rag | 0.250 | 0.900 | 0.008 | 0.022 | 0.400 | 0.500 | 0.600 | 2.50 | 1234.5 |" in text
    assert text.endswith(f"\n\n{lines[-1]}\n")


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
    with pytest.raises(ValueError, match=r"none/result\.json does not exist: the run has not"):
        compare.main(["compare", demo, str(tmp_path / "none")])
    with pytest.raises(ValueError, match="at least two workdirs"):
        compare.main(["compare", demo])

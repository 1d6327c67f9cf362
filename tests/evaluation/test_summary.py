"""The picture of the curves, and the table at the end of a run."""

import io
import json

import pytest
from rich.console import Console

from sr1_jax.evaluation.summary import draw_curves, print_summary

PNG = b"\x89PNG\r\n\x1a\n"


def write_metrics(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_curves_are_a_picture(tmp_path):
    rows = [
        {"step": n, "em": n / 9, "reward": n / 9, "searches": 1.0, "kl": 0.1, "policy/entropy": 2.0}
        for n in range(1, 9)
    ]
    rows[3] |= {"dev/greedy/em": 0.5, "dev/greedy/searches": 1.5, "kl": None}
    write_metrics(tmp_path, rows)
    path = draw_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(PNG)


def test_more_to_draw_makes_another_picture(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "em": 0.0}, {"step": 2, "em": 0.5}])
    first = draw_curves(tmp_path).read_bytes()
    write_metrics(tmp_path, [{"step": 1, "em": 0.0}, {"step": 2, "em": 0.1}])
    assert draw_curves(tmp_path).read_bytes() != first


def test_a_run_of_no_steps_has_an_empty_picture(tmp_path):
    assert draw_curves(tmp_path).read_bytes().startswith(PNG)


def printed(result, width=200) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(result, console)
    return console.file.getvalue()


def scores(em, one, two, searches, kinds=("greedy", "sampled")):
    return {
        f"{kind}/{key}": value
        for kind in kinds
        for key, value in {
            "em": em, "em_1_hop": one, "em_2_hop": two, "searches": searches, "f1": 0.99,
        }.items()
    }  # fmt: skip


@pytest.fixture
def result():
    return {
        "dev": "heldout",
        "dev_questions": 400,
        "before": scores(0.25, 0.5, 0.0, 1.25),
        "after": scores(0.8, 0.9, 0.7, 2.5),
        "after_facts_changed": scores(0.75, 0.85, 0.65, 2.25),
        "warm_start": [{"phase": "read", "step": 300} | scores(0.1, 0.2, 0.0, 0.5)],
        "scripted_ceiling": 0.9875,
        "seconds": 1234.4,
    }


def test_summary(result):
    text = printed(result)
    assert "Scores on 400 questions of heldout" in text
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines[1] == ["greedy"] * 4 + ["sampled"] * 4
    assert lines[2] == ["policy", *["EM", "1-hop", "2-hop", "search"] * 2]
    rows = {" ".join(cells[:-8]): cells[-8:] for cells in lines[3:]}
    assert rows["read 300"] == ["0.100", "0.200", "0.000", "0.50"] * 2
    assert rows["before"] == ["0.250", "0.500", "0.000", "1.25"] * 2
    assert rows["after"] == ["0.800", "0.900", "0.700", "2.50"] * 2
    assert rows["facts changed"] == ["0.750", "0.850", "0.650", "2.25"] * 2
    assert "Standard error of the last exact match: 0.020." in text  # sqrt(0.8 * 0.2 / 400)
    assert "A scripted perfect searcher would reach 0.988." in text
    assert "1234 seconds in all." in text


def test_summary_fits_80_columns(result):
    result["warm_start"] += [{"phase": "habits", "step": 240} | scores(0.008, 0.016, 0.0, 12.5)]
    lines = printed(result, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line.split() for line in lines if line.startswith("habits 240"))
    assert row == ["habits", "240", *["0.008", "0.016", "0.000", "12.50"] * 2]
    assert lines[2].split() == ["policy", *["EM", "1-hop", "2-hop", "search"] * 2]


def test_summary_without_hops_or_sampling():
    result = {
        "dev": "nq", "dev_questions": 32, "seconds": 5.0,
        "before": {"greedy/em": 0.125, "greedy/searches": 2.0},
        "after": {"greedy/em": 0.5, "greedy/searches": 1.0},
    }  # fmt: skip
    text = printed(result)
    assert "0.125" in text and "0.500" in text and "sampled" not in text and "hop" not in text


def test_supervised_checkpoints_are_shown(result):
    result["supervised"] = [{"phase": "good traces", "step": 7} | scores(0.3, 0.4, 0.2, 1.0)]
    assert "good traces 7" in printed(result)


def test_nothing_to_show_prints_nothing():
    assert printed({"dev": "", "dev_questions": 0, "seconds": 1.0}) == ""

"""metrics.jsonl and TensorBoard."""

import json
import math

import pytest

from sr1_jax.evaluation.metrics import MetricsWriter, read_metrics


def write(folder, steps, **options):
    writer = MetricsWriter(folder, **options)
    for step in steps:
        writer.write(step, {"reward": step / 4, "kl": 0.1})
    writer.close()


def test_one_object_a_step(tmp_path):
    write(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "reward": 0.25, "kl": 0.1},
        {"step": 2, "reward": 0.5, "kl": 0.1},
    ]
    assert isinstance(json.loads(lines[0])["step"], int)
    assert read_metrics(tmp_path) == [json.loads(line) for line in lines]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"reward": 1.0})
    assert len(read_metrics(tmp_path)) == 1
    writer.close()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_null(tmp_path, bad):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": bad, "reward": 0.5})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "loss": None, "reward": 0.5}


def test_a_resumed_run_drops_the_lines_that_will_come_again(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], start_step=2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_run_from_the_beginning_starts_a_new_file(tmp_path):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [1])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_a_line_cut_short_is_left_out_said_and_mended(tmp_path, capsys):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "rew')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert capsys.readouterr().err == f"{path}:3 is cut short and left out.\n"
    write(tmp_path, [3], start_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b'{"step": 2, "rew', "Unterminated string"),
        (b'{"step": 2}{"step": 3}', "Extra data"),
        (b"\xff\xfe", "utf-8"),
        (b"[2]", "no object with a step"),
        (b'{"reward": 2}', "no object with a step"),
        (b'{"step": "2"}', "no object with a step"),
        (b'\x1b[2J"', "Expecting value"),
    ],
)
def test_what_follows_a_damaged_line_is_kept(tmp_path, capsys, damaged, why):
    """Also by a run that is resumed, of which all later rows were dropped without a word."""
    write(tmp_path, [1, 2, 3, 4])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1] = damaged
    path.write_bytes(b"\n".join(lines))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 4]
    error = capsys.readouterr().err
    assert error.startswith(f"{path}:2 is damaged (") and why in error
    assert error.endswith("and left out.\n") and error.count("\n") == 1 and "\x1b" not in error
    write(tmp_path, [5], start_step=4)
    assert f"{path}:2 is damaged" in capsys.readouterr().err
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 4, 5]
    assert capsys.readouterr().err == ""


def test_no_file_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_same_scalars(tmp_path):
    write(tmp_path, [1, 2])
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert content.count(b"reward") == content.count(b"kl") == 2

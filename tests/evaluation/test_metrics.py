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


def test_a_line_cut_short_is_left_out_and_mended(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "rew')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, [3], start_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_no_file_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_same_scalars(tmp_path):
    write(tmp_path, [1, 2])
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert content.count(b"reward") == content.count(b"kl") == 2

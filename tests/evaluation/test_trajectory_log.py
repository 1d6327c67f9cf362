"""Trajectories as rows, files and print."""

import io
import json

import pytest
from rich.console import Console

from sr1_jax.evaluation.trajectory_log import (
    as_row,
    print_trajectories,
    spans,
    write_rows,
    write_trajectories,
)
from sr1_jax.retrieval.base import Passage

PARTS = [
    (0, "Who?\n"),
    (1, "<search>é</search>"),
    (0, "\nseen 日本\n"),
    (1, "<answer>Bob</answer>"),
]


@pytest.fixture
def spoken(make_trajectory, small_tokenizer):
    """A trajectory of the given (mask, text) parts."""

    def make(parts=PARTS, **changes):
        ids, mask = [], []
        for value, text in parts:
            new = small_tokenizer.encode(text)
            ids, mask = ids + new, mask + [value] * len(new)
        return make_trajectory(ids=ids, mask=mask, **changes)

    return make


def test_spans_are_the_runs_of_the_mask(spoken, small_tokenizer):
    assert list(spans(spoken(), small_tokenizer)) == PARTS
    assert list(spans(spoken(PARTS[:2]), small_tokenizer)) == PARTS[:2]
    assert list(spans(spoken(PARTS[:1]), small_tokenizer)) == PARTS[:1]


def test_spans_keep_ids_without_text(make_trajectory, small_tokenizer):
    """End-of-text, and an id that only the model knows, are policy tokens without words."""
    bob = small_tokenizer.encode("Bob")
    end, unknown = small_tokenizer.eos_ids[0], small_tokenizer.vocab_size + 3
    t = make_trajectory(ids=[*bob, end, *bob, unknown, *bob], mask=[0, 1, 0, 1, 1])
    assert list(spans(t, small_tokenizer)) == [(0, "Bob"), (1, ""), (0, "Bob"), (1, "Bob")]


def test_a_row_is_plain_data(spoken, small_tokenizer):
    t = spoken(
        question_id="s:t:1",
        sample=3,
        golden_answers=("Bob", "Al"),
        answer="Bob",
        reward=0.5,
        status="answered",
        searches=["é", "b"],
        passages=[[Passage("p7", "T", "x", 1.0), Passage("p8", "T", "x", 0.5)], []],
    )
    row = as_row(t, small_tokenizer)
    assert (
        json.loads(json.dumps(row))
        == row
        == {
            "question_id": "s:t:1",
            "sample": 3,
            "golden_answers": ["Bob", "Al"],
            "answer": "Bob",
            "reward": 0.5,
            "status": "answered",
            "searches": ["é", "b"],
            "passage_ids": [["p7", "p8"], []],
            "tokens": len(t.ids),
            "policy_tokens": int(t.mask.sum()),
            "spans": [list(part) for part in PARTS],
        }
    )


def test_the_first_few_of_a_step_are_written(spoken, small_tokenizer, tmp_path):
    run = [spoken(sample=i) for i in range(20)]
    folder = tmp_path / "a" / "trajectories"
    write_trajectories(folder, 42, run, small_tokenizer)
    (path,) = folder.iterdir()
    assert path.name == "step-000042.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().decode().splitlines()]
    assert rows == [as_row(t, small_tokenizer) for t in run[:8]]
    write_trajectories(folder, 42, run[:1], small_tokenizer)
    assert len(path.read_text().splitlines()) == 1
    write_trajectories(folder, 43, run[:1], small_tokenizer)
    assert len(list(folder.iterdir())) == 2


def test_rows_are_utf8_one_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "日本\nline\u2028"}, {"text": ""}]
    write_rows(path, rows)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == rows
    assert "日本".encode() in lines[0]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"old": 1}])
    with pytest.raises(TypeError):
        write_rows(path, [{"new": 1}, {"new": object()}])
    assert path.read_text() == '{"old": 1}\n'


def printed(trajectories, tokenizer, **console):
    file = io.StringIO()
    print_trajectories(trajectories, tokenizer, Console(file=file, width=200, **console))
    return file.getvalue()


def test_print_tells_own_words_from_others(spoken, small_tokenizer):
    right = spoken(answer="Bob", golden_answers=("Bob", "Al"), reward=0.8)
    wrong = spoken(PARTS[:1], answer=None, golden_answers=("Al",))
    lines = [line.strip() for line in printed([right, wrong], small_tokenizer).splitlines()]
    assert "reward 0.8: 'Bob', expected 'Bob or Al'" in lines[0]
    want = ["│ Who?", "<search>é</search>", "│ seen 日本", "<answer>Bob</answer>"]
    assert lines[1:5] == want
    assert "reward 0: None, expected 'Al'" in lines[5]
    styled = printed([right], small_tokenizer, force_terminal=True, color_system="standard")
    assert "\x1b[1;32m<search>é</search>" in styled and "\x1b[2m│ seen" in styled


@pytest.mark.parametrize("answer", ["[/b]", "[red]x", "a [link=x] b", "\\[x]", ":smile:"])
def test_print_takes_no_answer_for_markup(spoken, small_tokenizer, answer):
    t = spoken([(0, "[/i] :boom:"), (1, answer)], answer=answer, golden_answers=("[/u]",))
    lines = printed([t], small_tokenizer).splitlines()
    assert f"reward 0: {answer!r}, expected '[/u]'" in lines[0]
    assert [line.strip() for line in lines[1:]] == ["│ [/i] :boom:", answer]

"""Trajectories as rows, files and print."""

import dataclasses
import io
import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from sr1_jax.environment import Call, SearchRecord
from sr1_jax.environment.search_tool import Reading
from sr1_jax.evaluation.trajectory_log import (
    as_row,
    print_trajectories,
    read_trajectories,
    sampled_rows,
    spans,
    write_rows,
    write_trajectories,
)
from sr1_jax.retrieval.base import Passage
from sr1_jax.terminal import printable

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
            "rewards": {},
            "trains": True,
            "status": "answered",
            "calls": [],
            "searches": ["é", "b"],
            "passage_ids": [["p7", "p8"], []],
            "tokens": len(t.ids),
            "policy_tokens": int(t.mask.sum()),
            "spans": [list(part) for part in PARTS],
        }
    )


@pytest.mark.parametrize("groups", [1, 2, 3, 7, 10, 40])
def test_whole_groups_are_drawn_evenly(make_trajectory, groups):
    """Not the first eight rows, which are always those of one or two questions."""
    run = [make_trajectory(question_id=f"q{n}", sample=i) for n in range(10) for i in range(5)]
    counts = np.zeros(10, int)
    for step in range(1, 201):
        rows = sampled_rows(run, groups, step)
        questions = sorted({row // 5 for row in rows})
        assert rows == [5 * q + i for q in questions for i in range(5)]
        assert len(questions) == min(groups, 10)
        if 1 < groups < 10:
            gaps = np.diff(questions)
            assert gaps.max() <= np.ceil(10 / groups) and gaps.min() >= 10 // groups
        counts[questions] += 1
    # Over the steps every place of the batch comes as often.
    assert np.abs(counts / 200 - min(groups, 10) / 10).max() < 0.03
    assert sampled_rows(run, 0, 1) == []
    assert sampled_rows([], 3, 1) == []


def test_samples_that_are_scattered_are_one_group(make_trajectory):
    run = [make_trajectory(question_id=q) for q in "abcab"]
    assert {tuple(sampled_rows(run, 1, step)) for step in range(9)} == {(0, 3), (1, 4), (2,)}


def learned(rows, length, rng):
    """What a learner might say of rows, with padding behind."""
    values = rng.normal(size=(3, rows, length)).astype(np.float32)
    values[0, 0, 0] = np.nextafter(np.float32(0.1), np.float32(1))  # no short decimal
    values[1, :, 1] = [np.nan, -np.inf, 1e-42][:rows] + [0.0] * (rows - 3)
    values[2] = -0.0
    return dict(zip(("values", "advantages", "returns"), values))


def test_what_was_written_reads_back_exactly(spoken, small_tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    run = []
    for sample in range(6):
        t = spoken(PARTS[: 2 + sample % 3], sample=sample, reward=0.1 * sample)
        logp = np.float32(t.mask) * rng.normal(size=len(t.mask)).astype(np.float32)
        run.append(dataclasses.replace(t, logp=logp))
    rows, length = [1, 3, 5], 4 + max(len(t.ids) for t in run)
    arrays = learned(len(rows), length, rng)
    path = write_trajectories(
        tmp_path / "a" / "trajectories", 42, run, small_tokenizer, rows=rows, arrays=arrays
    )
    assert path.name == "step-000042.jsonl"
    assert {p.name for p in path.parent.iterdir()} == {"step-000042.jsonl", "step-000042.npz"}
    found = read_trajectories(path)
    assert [row["sample"] for row in found] == rows
    for number, (row, got) in enumerate(zip(rows, found)):
        t = run[row]
        want = {"ids": t.ids, "mask": t.mask, "logp": t.logp}
        want |= {name: values[number, : len(t.ids)] for name, values in arrays.items()}
        for name, array in want.items():
            assert got[name].dtype == array.dtype and got[name].tobytes() == array.tobytes(), name
        plain = {key: value for key, value in got.items() if not isinstance(value, np.ndarray)}
        assert plain == as_row(t, small_tokenizer)
    assert read_trajectories(path.with_suffix(".npz"))[0].keys() == found[0].keys()


def test_rewards_by_term_and_segment_read_back(spoken, small_tokenizer, tmp_path):
    run = [spoken(sample=0), spoken(PARTS[:2], sample=1)]
    for number, t in enumerate(run):
        object.__setattr__(t, "rewards", {"em": 1.0, "mine": 0.1 + number})
        object.__setattr__(t, "segment_rewards", np.float32([0.1, 0.9])[: 2 - number])
        object.__setattr__(t, "trains", number == 0)
        call = SimpleNamespace(tag="search", request="é", record=object())
        object.__setattr__(t, "calls", [call])
    found = read_trajectories(write_trajectories(tmp_path, 1, run, small_tokenizer))
    assert [row["rewards"] for row in found] == [{"em": 1.0, "mine": 0.1}, {"em": 1.0, "mine": 1.1}]
    assert [row["trains"] for row in found] == [True, False]
    assert found[0]["calls"] == [["search", "é"]]
    for row, t in zip(found, run):
        np.testing.assert_array_equal(row["segment_rewards"], t.segment_rewards)
        assert row["segment_rewards"].dtype == np.float32


def test_bfloat16_keeps_its_values(spoken, small_tokenizer, tmp_path):
    t = spoken()
    values_BT = jnp.linspace(-1, 1, len(t.ids), dtype=jnp.bfloat16)[None]
    path = write_trajectories(tmp_path, 1, [t], small_tokenizer, arrays={"values": values_BT})
    (row,) = read_trajectories(path)
    np.testing.assert_array_equal(row["values"], np.asarray(values_BT[0], np.float32))


def test_a_step_of_which_nothing_is_kept(spoken, small_tokenizer, tmp_path):
    path = write_trajectories(tmp_path, 1, [spoken()], small_tokenizer, rows=[], arrays={})
    assert read_trajectories(path) == []


def test_what_a_reader_wrote_is_in_the_row(spoken, small_tokenizer):
    read = SearchRecord(["é"], [[]], Reading("<answer>x</answer>", "x", 3))
    calls = [Call("search", "é", read, 0), Call("search", "é", SearchRecord(["é"], [[]]), 1),
             Call("sum", "1", {"total": 1}, 2)]  # fmt: skip
    row = as_row(spoken(calls=calls), small_tokenizer)
    assert row["readings"] == ["<answer>x</answer>", None, None]
    assert json.loads(json.dumps(row)) == row
    assert "readings" not in as_row(spoken(calls=calls[1:]), small_tokenizer)


def test_arrays_of_other_rows_are_refused(spoken, small_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="values has 3 rows for 1"):
        write_trajectories(
            tmp_path, 1, [spoken()], small_tokenizer, arrays={"values": np.zeros((3, 99))}
        )
    assert list(tmp_path.iterdir()) == []


def test_files_of_one_step_are_equal_bit_by_bit(spoken, small_tokenizer, tmp_path):
    for folder in ("a", "b"):
        write_trajectories(tmp_path / folder, 1, [spoken()] * 3, small_tokenizer)
    for name in ("step-000001.jsonl", "step-000001.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_rows_are_utf8_one_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "日本\nline\u2028"}, {"text": ""}]
    write_rows(path, rows)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == rows
    assert "日本".encode() in lines[0]


HOSTILE = "\x1b]0;owned\x07 \x1b]52;c;eA==\x1b\\ \x1b[2J \x9b2J \x7f \u202ex"


def test_files_have_control_characters_escaped(tmp_path):
    """JSON itself escapes ESC, but neither its one-byte form nor DEL."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"text": HOSTILE, HOSTILE: "é 日本"}])
    text = path.read_text(encoding="utf-8")
    assert printable(text) == text and "é 日本" in text
    assert json.loads(text) == {"text": HOSTILE, HOSTILE: "é 日本"}


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


def test_print_takes_no_text_for_an_escape_sequence(spoken, small_tokenizer):
    t = spoken(
        [(0, f"a{HOSTILE}\n"), (1, f"b{HOSTILE}")], answer=HOSTILE, golden_answers=(HOSTILE,)
    )
    text = printed([t], small_tokenizer)
    assert printable(text) == text
    assert "b]0;owned ]52;c;eA==\\ [2J 2J  x" in text

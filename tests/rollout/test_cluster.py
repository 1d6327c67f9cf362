"""Two processes with a retriever each roll out in lockstep, and give what one process gives."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_encoders import draw_texts, write_bert, write_corpus

from sr1_jax.data.questions import as_question
from sr1_jax.models.encoder_folder import load_encoder
from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.dense import DenseRetriever
from sr1_jax.rollout.lockstep import SlotLayout, decode_counts
from sr1_jax.rollout.split_engine import in_order, share_of, total_stats
from sr1_jax.rollout.stats import as_metrics
from sr1_jax.sharding import make_mesh


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_two_processes_give_what_one_gives(
    run_cluster, make_config, make_engine, questions, fake_retriever, tensor
):
    config = make_config(slots=8, passages=1, long_prompts="skip")
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    # Nine questions: one process has one more, and goes on alone at the end. One comes again, one
    # does not fit.
    long = {"id": "long", "question": "Who is " + "the mayor of " * 99, "golden_answers": ["P"]}
    asked = [*questions[:4], long, *questions[4:8], questions[2]]
    runs = run_cluster(devices=2, tensor=tensor, rollout=plain, questions=asked, samples=2)
    retriever = fake_retriever(lambda q, rank: Passage(f"{q}-1", "T1", f"on {q[:12]}", 1.0))
    engine = make_engine(retriever, slots=8, passages=1, long_prompts="skip")
    want = engine.run(asked, seed=1, samples=2)
    assert len(want) == 18
    for rows, stats, collectives in runs:
        assert [row["key"] for row in rows] == [[t.question_id, t.sample] for t in want]
        for t, row in zip(want, rows):
            assert row["ids"] == t.ids.tolist() and row["mask"] == t.mask.tolist()
            assert (row["searches"], row["status"]) == (t.searches, t.status)
        for key in ("episodes", "decoded_tokens", "search_calls", "skipped_prompts"):
            assert stats[key] == engine.stats[key] > 0
        assert stats == runs[0][1]
        # What to call next is agreed from host to host; the trajectories go over the devices.
        assert collectives["while playing"] == 0 < collectives["ever"]


@pytest.mark.slow
def test_two_processes_that_share_a_dense_index(
    run_cluster, make_config, make_engine, questions, tmp_path
):
    """Slots go on decoding while searches use the same devices."""
    encoder = load_encoder(write_bert(tmp_path / "encoder"))
    corpus = write_corpus(tmp_path / "corpus.jsonl", draw_texts(80))
    retriever = DenseRetriever.build(corpus, tmp_path / "index", encoder, dtype="float32")
    config = make_config(slots=8, passages=2)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    runs = run_cluster(
        devices=2, tensor=1, rollout=plain, questions=questions, samples=2,
        dense=str(tmp_path / "index"), encoder=str(tmp_path / "encoder"),
    )  # fmt: skip
    want = make_engine(retriever, slots=8, passages=2).run(questions, seed=1, samples=2)
    assert sum(len(t.searches) for t in want) > 5
    for rows, _, collectives in runs:
        assert [row["key"] for row in rows] == [[t.question_id, t.sample] for t in want]
        assert [row["ids"] for row in rows] == [t.ids.tolist() for t in want]
        assert collectives["while playing"] == 0


@pytest.mark.slow
def test_fewer_questions_than_processes(run_cluster, make_config, make_engine, questions):
    config = make_config(slots=4, max_searches=0)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    runs = run_cluster(devices=1, tensor=1, rollout=plain, questions=questions[:1], samples=3)
    want = make_engine(slots=4, max_searches=0).run(questions[:1], seed=1, samples=3)
    for rows, _, _ in runs:
        assert [row["ids"] for row in rows] == [t.ids.tolist() for t in want]


def test_shares_and_their_order(make_trajectory):
    questions = [as_question(dict(id=id, question=id, golden_answers=["x"])) for id in "abcadb"]
    shares = [share_of(questions, process, 2) for process in range(2)]
    assert [[q.id for q in share] for share in shares] == [["a", "c", "a"], ["b", "d", "b"]]
    assert share_of(questions[:1], 1, 2) == []
    want = [
        make_trajectory(question_id=id, sample=sample)
        for id, first in zip("abcadb", (0, 0, 0, 2, 0, 2))
        for sample in (first, first + 1)
    ]
    shuffled = [want[i] for i in np.random.default_rng(0).permutation(len(want))]
    assert in_order(shuffled, questions, samples=2) == want
    # Left out: what did not fit.
    assert in_order(shuffled[3:], questions, samples=2) == [
        t for t in want if any(t is kept for kept in shuffled[3:])
    ]


def test_stats_of_all_processes():
    total = total_stats(
        [
            {"episodes": 3, "seconds": 2.0, "search_seconds": 1.5, "decode_calls": 7},
            {"episodes": 4, "seconds": 2.5, "search_seconds": 0.5, "decode_calls": 7,
             "search_calls": 1},
        ]
    )  # fmt: skip
    assert total == {
        "episodes": 7, "seconds": 2.5, "search_seconds": 2.0, "decode_calls": 7, "search_calls": 1,
    }  # fmt: skip
    assert as_metrics(total)["rollout/trajectories_per_second"] == 7 / 2.5


def test_layout_of_slots():
    layout = SlotLayout(make_mesh(2, 2, 2), 12)
    assert (layout.parts, layout.per_part, layout.slots) == (4, 3, 12)
    assert layout.part_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    x_S = np.arange(24).reshape(12, 2)
    placed = layout.place((x_S,))[0]
    assert {s.data.shape for s in placed.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(layout.read((placed,))[0], x_S)
    assert layout.most([3, 1]).tolist() == layout.total([3, 1]).tolist() == [3, 1]


def test_sizes_of_calls():
    one_device = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    layout = SlotLayout(one_device, 32)
    assert layout.row_counts == [2, 4, 8, 16, 32]
    calls = {n: layout.calls(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 13, 17, 25, 29, 32)}
    assert calls == {
        1: [2], 2: [2], 3: [4], 4: [4], 5: [4, 2], 6: [4, 2], 7: [8], 9: [8, 2], 13: [8, 4, 2],
        17: [16, 2], 25: [16, 8, 2], 29: [32], 32: [32],
    }  # fmt: skip
    # A CPU has a smaller decode program too, unless slots are few or it is told not to.
    for per_part, sizes, want in [(32, 0, [8, 32]), (7, 0, [7]), (7, 2, [2, 7]), (32, 1, [32])]:
        assert decode_counts(per_part, sizes, one_device) == want


def test_slots_that_do_not_divide():
    message = r"rollout.slots=12 does not divide over the 8 devices of mesh axes data and fsdp"
    with pytest.raises(ValueError, match=message):
        SlotLayout(make_mesh(4, 2, 1), 12)


def test_a_slot_on_several_hosts():
    chips = np.array([SimpleNamespace(process_index=i // 4) for i in range(16)])
    mesh = SimpleNamespace(
        devices=chips.reshape(2, 1, 8), shape={"data": 2, "fsdp": 1, "tensor": 8}
    )
    with pytest.raises(ValueError, match=r"mesh\.tensor=8: .* Set it to 4, or a divisor"):
        SlotLayout(mesh, 16)

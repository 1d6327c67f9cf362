"""Two processes with a retriever each roll out in lockstep, and give what one process gives."""

import numpy as np
import pytest

from sr1_jax.retrieval.base import Passage
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.sharding import make_mesh


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_two_processes_give_what_one_gives(
    run_cluster, make_config, make_engine, questions, fake_retriever, tensor
):
    config = make_config(slots=8, passages=1)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.to_dict().items()}
    # Eleven questions: one process has one more, and goes on alone at the end.
    asked = questions[:11]
    got = run_cluster(devices=2, tensor=tensor, rollout=plain, questions=asked, samples=2)
    retriever = fake_retriever(lambda q, rank: Passage(f"{q}-1", "T1", f"on {q[:12]}", 1.0))
    want = make_engine(retriever, slots=8, passages=1).run(asked, seed=1, samples=2)
    assert got.keys() == {(t.question_id, t.sample) for t in want}
    for t in want:
        row = got[t.question_id, t.sample]
        assert row["ids"] == t.ids.tolist() and row["mask"] == t.mask.tolist()
        assert (row["searches"], row["status"]) == (t.searches, t.status)


def test_layout_of_slots():
    layout = SlotLayout(make_mesh(2, 2, 2), 12)
    assert (layout.parts, layout.per_part, layout.slots) == (4, 3, 12)
    assert layout.part_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    x_S = np.arange(24).reshape(12, 2)
    placed = layout.place((x_S,))[0]
    assert {s.data.shape for s in placed.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(layout.read((placed,))[0], x_S)
    assert layout.most([3, 1]).tolist() == layout.total([3, 1]).tolist() == [3, 1]


def test_slots_that_do_not_divide():
    message = r"rollout.slots=12 does not divide over the 8 devices of mesh axes data and fsdp"
    with pytest.raises(ValueError, match=message):
        SlotLayout(make_mesh(4, 2, 1), 12)

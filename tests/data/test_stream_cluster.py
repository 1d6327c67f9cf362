"""Streams on two real processes: the same questions as on one, to the next one after a restore."""

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
WORKER = Path(__file__).parent / "stream_worker.py"


def write_questions(folder):
    folder.mkdir()
    rows = (
        {"id": f"{name}:train:{i}", "question": f"{'Who' * (i % 7)} {i}?", "golden_answers": ["A"]}
        for name, count in (("nq", 40), ("hotpotqa", 25))
        for i in range(count)
    )
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["plain", "mixture", "curriculum"])
def test_on_one_process_and_on_two_the_next_question_is_the_same(start_processes, tmp_path, kind):
    def run(folder, first, last, count):
        def arguments(process, coordinator):
            joined = (coordinator, count, process) if count > 1 else ()
            return (WORKER, folder, kind, first, last, *joined)

        start_processes(arguments, count=count).check()
        found = [json.loads((folder / f"ids-{first}-{p}.json").read_text()) for p in range(count)]
        assert all(ids == found[0] for ids in found)
        return found[0]

    whole = run(write_questions(tmp_path / "whole"), 0, 12, 1)
    broken = write_questions(tmp_path / "broken")
    assert run(broken, 0, 5, 2) == whole[:5]
    other = tmp_path / "other"
    shutil.copytree(broken, other)
    # Taken up again on one process and on two.
    assert run(broken, 5, 12, 1) == whole[5:]
    assert run(other, 5, 12, 2) == whole[5:]
    states = [(f / "state.json").read_text() for f in (tmp_path / "whole", broken, other)]
    assert len(set(states)) == 1

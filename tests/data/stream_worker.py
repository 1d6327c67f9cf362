"""One of several processes that draw questions and tell what was solved.

Called as `python stream_worker.py FOLDER KIND FIRST LAST HOST:PORT PROCESSES PROCESS`; without
the last three it is alone. FOLDER holds questions.jsonl and, once steps were done, state.json,
which it goes on from and leaves behind. Ids of the questions of each step go to
ids-FIRST-PROCESS.json.
"""

import json
import sys
from pathlib import Path

import jax

from sr1_jax import cluster
from sr1_jax.agreement import gather, once_a_file_system
from sr1_jax.data.builder import open_questions, prepare_questions
from sr1_jax.rollout.split_engine import share_of
from sr1_jax.training.settings import default_config
from sr1_jax.training.training_questions import open_stream


def solved(question, step):
    """Made up, but not the same for all, nor at all times."""
    return (len(question.question) * 7 + step * 3) % 5 / 4


def settings(kind):
    config = default_config()
    config.seed = 11
    if kind != "plain":
        config.data.weights = (("nq", 2.0), ("hotpotqa", 1.0))
    config.data.curriculum.enabled = kind == "curriculum"
    return config


def main(folder, kind, first, last):
    def prepare():
        fingerprint = prepare_questions({"train": folder / "questions.jsonl"}, folder / "data")
        return open_questions(folder / "data", "train", fingerprint)

    source = once_a_file_system(folder / "data", prepare)
    path = folder / "state.json"
    state = json.loads(path.read_text()) if path.is_file() else {}
    gather(None)  # all have read it before one writes it
    stream = open_stream(settings(kind), source, state)
    ids = []
    for step in range(first, last):
        # As in a rollout: each process answers its share, and all get all answers.
        questions = stream.take(6) + stream.take(1 + step % 3)
        mine = share_of(questions, jax.process_index(), jax.process_count())
        rates = {}
        for part in gather({question.id: solved(question, step) for question in mine}):
            rates |= part
        stream.observe(questions, [rates[question.id] for question in questions])
        ids.append([question.id for question in questions])
    if cluster.is_first():
        path.write_text(json.dumps(stream.state()))
    (folder / f"ids-{first}-{jax.process_index()}.json").write_text(json.dumps(ids))


if __name__ == "__main__":
    folder, kind, first, last, *joined = sys.argv[1:]
    if joined:
        cluster.join(joined[0], int(joined[1]), int(joined[2]))
    main(Path(folder), kind, int(first), int(last))

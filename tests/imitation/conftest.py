"""A few passages of an invented country, questions of every kind, and a stage over them."""

import json
from types import SimpleNamespace

import pytest

from sr1_jax.data.questions import as_question
from sr1_jax.environment import make_environment
from sr1_jax.imitation.plans import Options
from sr1_jax.imitation.shown import Searches
from sr1_jax.imitation.stage import Stage
from sr1_jax.imitation.writer import write_traces
from sr1_jax.protocol.prompts import load_template
from sr1_jax.retrieval import BM25Retriever
from sr1_jax.training.settings import default_config

PASSAGES = [
    ("Brindle Bridge", "Brindle Bridge is a stone bridge. In the year 1874 it was opened by Marta "
     "Quill, who had drawn it."),
    ("Marta Quill", "Marta Quill (3 May 1830 – 9 June 1901) was an engineer from Tarnow Hill. She "
     "drew the plans of several bridges."),
    ("Edvin Stroud", "Edvin Stroud (12 March 1851 – 1 May 1920) was a Norlandish painter."),
    ("Ola Fenwick", "Ola Fenwick (2 July 1849 – 8 May 1899) was a Norlandish poet."),
    ("The Glass Orchard (film)", "The Glass Orchard is a film of 1961 that Ines Calder made, "
     "with music by Tom Rusk."),
    ("Ines Calder", "Ines Calder (born 8 October 1922) grew up in Port Vell, a town to which the "
     "director came back."),
    ("Orrow", "The Orrow, or Orrow river, is the Orrow of many songs."),
    ("Orrow", "From spring to mouth the water is 312 kilometres long; the Orrow is never wide."),
    ("Harbour songs", "Songs of sailors, which were sung in a harbour and written down by nobody."),
    ("Tags in texts", "Whoever writes </search> or <answer> in a text gets &lt; instead."),
    ("Salt trade", "Salt was traded over two bridges and one ford, mostly in winter."),
]  # fmt: skip
QUESTIONS = [
    ("nq:t:bridge", "when was brindle bridge opened", ["1874"], ["Brindle Bridge"]),
    ("nq:t:river", "How long is the Orrow?", ["312 kilometres"], ["Orrow"]),
    ("nq:t:songs", "Who first published harbour songs?", ["Bela Norn"], None),
    ("hp:t:born", "From where was the woman who opened Brindle Bridge?", ["Tarnow Hill"],
     ["Brindle Bridge", "Marta Quill"]),
    ("hp:t:film", "In what town did the director of The Glass Orchard live?", ["Port Vell"], None),
    ("hp:t:older", "Who was born first, Edvin Stroud or Ola Fenwick?", ["Ola Fenwick"], None),
    ("2w:t:both", "Were Edvin Stroud and Ola Fenwick both Norlandish?", ["yes"],
     ["Edvin Stroud", "Ola Fenwick"]),
    ("2w:t:unknown", "Is it so?", ["no"], None),
]  # fmt: skip


@pytest.fixture(scope="session")
def qa_questions():
    return [
        as_question({
            "id": id, "question": text, "golden_answers": golden,
            "metadata": {"supporting_titles": titles} if titles else {},
        })
        for id, text, golden, titles in QUESTIONS
    ]  # fmt: skip


@pytest.fixture(scope="session")
def qa_files(tmp_path_factory, qa_questions):
    """Folder with corpus.jsonl and train.jsonl."""
    folder = tmp_path_factory.mktemp("qa")
    with open(folder / "corpus.jsonl", "w") as file:
        for number, (title, text) in enumerate(PASSAGES):
            file.write(json.dumps({"id": str(number), "title": title, "text": text}) + "\n")
    with open(folder / "train.jsonl", "w") as file:
        for q in qa_questions:
            row = {"id": q.id, "question": q.question, "golden_answers": list(q.golden_answers)}
            file.write(json.dumps(row | {"metadata": q.metadata, "own": 1}) + "\n")
    return folder


@pytest.fixture(scope="session")
def qa_retriever(qa_files):
    return BM25Retriever.build(qa_files / "corpus.jsonl", qa_files / "index")


@pytest.fixture(scope="session")
def make_stage(qa_retriever, small_tokenizer):
    """`make_stage(**changes of rollout)`: everything that traces are written with, and `write`."""

    def make(template="search", **changes):
        config = default_config()
        # In this tokenizer a word is several tokens.
        config.rollout.update(
            dict(passages=1, max_searches=3, max_segment_tokens=400, max_observation_tokens=250,
                 max_context_tokens=4000) | changes
        )  # fmt: skip
        environment = make_environment(config, qa_retriever, load_template(template))
        searches = Searches(environment, small_tokenizer, config.rollout)
        stage = Stage(environment, config.rollout, small_tokenizer, searches)

        def write(questions, *, seed=0, gave_up=0.5, **options):
            options = Options(**{"budget": config.rollout.max_searches} | options)
            return write_traces(questions, searches, stage, options, seed=seed, gave_up=gave_up)

        return SimpleNamespace(
            config=config, environment=environment, searches=searches, stage=stage, write=write
        )

    return make


@pytest.fixture(scope="session")
def qa_traces(make_stage, qa_questions):
    """The traces of every kind by id of the question, over several seeds, and a report."""
    stage = make_stage()
    traces = []
    for seed in range(4):
        found, report = stage.write(qa_questions, seed=seed, chain=1.0, again=1.0)
        traces += found
    return traces, report

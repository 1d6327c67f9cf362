"""One question at a time: independent, warmed up, and what a conversation does with trouble."""

import io
import json

import jax
import pytest

from sr1_jax.asking import (
    Answered,
    Asker,
    View,
    answer_all,
    as_data,
    asking_config,
    converse,
    make_console,
    write_all,
)
from sr1_jax.environment import Environment
from sr1_jax.environment.watched import Wrote
from sr1_jax.retrieval.base import Passage
from sr1_jax.rollout import Engine, default_config
from sr1_jax.sharding import make_mesh
from sr1_jax.training import settings

TOWN, MAYOR = "Who is the mayor?", "Where is the town of Bob?"


@pytest.fixture(scope="module")
def engine(tiny_decoder, small_tokenizer, fake_retriever):
    config = default_config()
    config.update(
        {
            "slots": 1, "passages": 2, "max_searches": 2, "max_segment_tokens": 24,
            "max_observation_tokens": 40, "max_context_tokens": 200, "decode_steps": 3,
            "extend_buckets": (24,),
        }
    )  # fmt: skip
    retriever = fake_retriever()
    environment = Environment.of_search(retriever, config, template="compact_search")
    engine = Engine(
        tiny_decoder, small_tokenizer, retriever, config, environment=environment,
        keeps_caches=True,
    )  # fmt: skip
    Asker(engine).warm_up()
    return engine


def ids_of(answered):
    return answered.trajectory.ids.tolist()


def silent(*_):
    return None


def test_questions_know_nothing_of_each_other(engine):
    one, other = Asker(engine, seed=7), Asker(engine, seed=7)
    other.ask(MAYOR, silent)
    first, same = one.ask(TOWN, silent), other.ask(TOWN, silent)
    assert ids_of(first) == ids_of(same)
    assert engine.stats["compilations"] == 0
    # The same question again is sampled anew, as a later one of the same seed would be.
    again = one.ask(TOWN, silent)
    assert ids_of(again) != ids_of(first)
    assert ids_of(again) == ids_of(Asker(engine, seed=8).ask(TOWN, silent))


def test_the_time_of_the_first_text(engine):
    told = []
    answered = Asker(engine).ask(TOWN, lambda *event: told.append(event))
    assert 0 < answered.first_text_seconds <= answered.seconds
    question, sample, _ = told[0]
    assert (question.question, sample) == (TOWN, 0)
    text = "".join(event.text for _, _, event in told if isinstance(event, Wrote))
    assert text == answered.trajectory.policy_text


def test_questions_that_cannot_be_asked(engine):
    for blank in ("", " \n"):
        with pytest.raises(ValueError, match="A question is empty"):
            Asker(engine).ask(blank, silent)
    with pytest.raises(ValueError, match=r"'Who is the mayor.*raise rollout.max_context_tokens"):
        Asker(engine).check("Who is the mayor of the mayor " * 40)


def test_settings_for_asking():
    config = settings.default_config()
    config.rollout.slots = 64
    mesh = make_mesh(2, 2, 2)
    asking = asking_config(config, mesh)
    assert (asking.rollout.slots, asking.rollout.decode_steps) == (4, 4)
    assert asking.rollout.passages == config.rollout.passages
    asking = asking_config(config, make_mesh(1, 1, 1, jax.devices()[:1]), passages=7, temperature=0)
    assert (asking.rollout.slots, asking.rollout.passages) == (1, 7)
    assert asking.rollout.temperature == 0.0
    assert config.rollout.slots == 64 and config.rollout.decode_steps == 32
    config.rollout.decode_steps = 2
    assert asking_config(config, mesh).rollout.decode_steps == 2


def test_an_answer_as_data(small_tokenizer, make_trajectory):
    ids = small_tokenizer.encode("Who? <answer>é</answer>")
    cut = len(small_tokenizer.encode("Who? "))
    hits = [Passage("p", "T", "x", 1.5)]
    trajectory = make_trajectory(
        ids=ids, mask=[0] * cut + [1] * (len(ids) - cut), prompt_length=cut, answer="é",
        status="answered", searches=["mayor"], passages=[hits], prompt_passages=hits,
    )  # fmt: skip
    data = as_data(Answered("Who?", trajectory, 1.23456, None), small_tokenizer)
    passage = {"id": "p", "title": "T", "text": "x", "score": 1.5}
    assert json.loads(json.dumps(data)) == {
        "question": "Who?",
        "answer": "é",
        "status": "answered",
        "well_formed": False,
        "searches": [{"query": "mayor", "passages": [passage]}],
        "calls": [],
        "prompt_passages": [passage],
        "spans": [[0, "Who? "], [1, "<answer>é</answer>"]],
        "seconds": 1.235,
        "first_text_seconds": None,
        "tokens": {"prompt": cut, "policy": len(ids) - cut, "shown": 0},
    }


def test_lines_of_json_are_ascii(engine, small_tokenizer):
    file = io.StringIO()
    write_all(Asker(engine), [TOWN, "Où \x9b\u202e?"], small_tokenizer, file)
    lines = file.getvalue().splitlines()
    assert file.getvalue().isascii() and len(lines) == 2
    first, second = map(json.loads, lines)
    assert second["question"] == "Où \x9b\u202e?"
    assert first["tokens"]["policy"] > 0 and first["first_text_seconds"] > 0
    for call, search in zip(first["calls"], first["searches"]):
        assert call == {"tool": "search", "request": search["query"]}
        assert [p["title"] for p in search["passages"]] == ["T1", "T2"]
    assert "".join(text for _, text in first["spans"]).count(TOWN) == 1


def test_several_questions_at_a_terminal(engine):
    file = io.StringIO()
    answer_all(Asker(engine), [TOWN, MAYOR], View(make_console(file), ["search"]))
    text = file.getvalue()
    assert text.index(f"question  {TOWN}\n") < text.index(f"question  {MAYOR}\n")
    assert text.count(" tokens · ") == 2


class Typed:
    """Stands for somebody at a prompt; an exception among the lines is raised."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def __call__(self):
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


class Troubled:
    """Stands for an asker whom something happens to."""

    def __init__(self, engine, **trouble):
        self.asker, self.trouble, self.asked = Asker(engine), trouble, []

    def ask(self, question, watch):
        self.asked.append(question)
        if question in self.trouble:
            raise self.trouble[question]
        return self.asker.ask(question, watch)


def test_a_conversation(engine):
    file = io.StringIO()
    asker = Troubled(engine, slow=KeyboardInterrupt(), broken=RuntimeError("search failed"))
    typed = Typed("slow", "", "  ", KeyboardInterrupt(), "broken", f" {TOWN} ")
    converse(asker, View(make_console(file), ["search"]), typed)
    assert asker.asked == ["slow", "broken", TOWN]
    text = file.getvalue()
    assert text.count("stopped") == 1 and "error  search failed" in text
    assert " tokens · " in text and not typed.lines
    assert "question  " not in text  # it was typed


def test_ctrl_c_within_an_answer(engine):
    class Interrupting(View):
        def watch(self, question, sample, event):
            super().watch(question, sample, event)
            if isinstance(event, Wrote):
                raise KeyboardInterrupt

    file, asker = io.StringIO(), Asker(engine)
    converse(asker, Interrupting(make_console(file), ["search"]), Typed(TOWN))
    assert "stopped\n" in file.getvalue()
    # The next question finds the beginning of its prompt in the cache again.
    asker.ask(MAYOR, silent)
    assert engine.stats["forked_tokens"] > 0 and "reshard_seconds" not in engine.stats
    asker = Asker(engine)
    assert ids_of(asker.ask(MAYOR, silent)) == ids_of(Asker(engine).ask(MAYOR, silent))

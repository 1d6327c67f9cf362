"""Training questions as the settings want them, and a stream that is taken up again."""

import contextlib
import json

import jax.numpy as jnp
import pytest

from sr1_jax.data.curriculum import CurriculumStream
from sr1_jax.data.questions import Question
from sr1_jax.data.stream import QuestionStream
from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.train import train
from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.checks import check_config
from sr1_jax.training.resume import check_resumable, run_facts, take_up
from sr1_jax.training.rollouts import Memory, prompt_memory, questions_that_fit
from sr1_jax.training.settings import default_config
from sr1_jax.training.task import files_task
from sr1_jax.training.training_questions import files_of, open_stream, solve_rates

SIZES = {"nq": 6, "hotpotqa": 4}


@pytest.fixture
def config(tmp_path):
    """A folder of two sets, asked for by name, and a method that searches nothing."""
    config = default_config()
    for name, size in SIZES.items():
        for split in ("train", "dev", "test"):
            write_set(tmp_path / "sets" / name / f"{split}.jsonl", size, split)
    config.data.folder = str(tmp_path / "sets")
    config.data.questions, config.data.dev = "nq_hotpotqa", "nq,hotpotqa"
    config.data.corpus, config.base.path, config.method = "c", "b", "direct"
    return config


def write_set(path, count, split):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"id": f"{split}_{i}", "question": "Who?", "golden_answers": ["A"], "metadata": {"n": i}}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ids(source):
    return [source[i].id for i in range(len(source))]


def test_sets_by_name(config, tmp_path, capsys):
    check_config(config)
    task = files_task(config, tmp_path / "run")
    assert ids(task.train) == [f"{s}:train:{i}" for s, n in SIZES.items() for i in range(n)]
    ((name, dev),) = task.dev.items()
    assert name == "nq_test+hotpotqa_dev"
    assert [q.id for q in dev][:1] + [q.id for q in dev][-1:] == ["nq:test:0", "hotpotqa:dev:3"]
    said = capsys.readouterr().err
    for line in ("nq:train has 6", "hotpotqa:train has 4", "nq:test has 6", "hotpotqa:dev has 4"):
        assert f"{line} questions here, officially" in said


def test_names_and_paths_together(config, tmp_path):
    write_set(tmp_path / "own.jsonl", 2, "train")
    config.data.questions = f"hotpotqa:dev,{tmp_path / 'own.jsonl'}"
    task = files_task(config, tmp_path / "run")
    assert ids(task.train)[3:] == ["hotpotqa:dev:3", "train_0", "train_1"]
    assert task.train[5].source == "own"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("questions", "musique", "data.questions: musique:train is not in"),
        ("dev", "nq,popqa", "data.dev: popqa:test is not in"),
        ("folder", "", "data.questions: nq_hotpotqa names a question set: set data.folder to"),
        ("folder", "none", "data.questions: data.folder=none: no such folder"),
        ("questions", "nq:val", "data.questions: nq:val: the splits of a set are"),
    ],
)
def test_sets_that_are_not_there_are_named_with_their_key(config, key, value, message):
    config.data[key] = value
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        for name in ("questions", "dev"):
            files_of(config, name, training=name == "questions")


def test_a_selection_is_part_of_the_contents(config, tmp_path):
    def task_with(**changes):
        changed = config.copy_and_resolve_references()
        for key, value in changes.items():
            changed.data[key] = value
        check_config(changed)
        return files_task(changed, tmp_path / "run")

    whole = task_with()
    some = task_with(filter=("metadata.n!=1",), limit=(("nq", 3),))
    assert len(some.train) == 3 + 3 and "nq:train:1" not in ids(some.train)
    others = [task_with(filter=("metadata.n!=2",)), task_with(limit=(("*", 2),))]
    prints = [t.contents["data.questions"] for t in (whole, some, *others)]
    assert len(set(prints)) == 4
    # What leaves all questions is not another selection.
    assert task_with(limit=(("*", 99),)).contents == whole.contents
    # Development questions are never chosen from.
    assert [len(q) for q in some.dev.values()] == [len(q) for q in whole.dev.values()]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("filter", ("n=2",), "data.filter has 'n=2'; write source=NAME"),
        ("filter", (3,), "data.filter must hold strings, not 3"),
        ("filter", ("no_such_module:f",), r"data\.filter='no_such_module:f': there is no module"),
        ("limit", (("nq", 0),), r"data\.limit must hold pairs .* at least 1, not \('nq', 0\)"),
        ("limit", (("nq", 1.5),), r"data\.limit must hold pairs"),
        ("weights", (("nq", -1.0),), r"data\.weights must hold pairs .* 0 or more, not"),
        ("weights", (("nq", float("nan")),), r"data\.weights must hold pairs"),
        ("weights", (("nq", float("inf")),), r"data\.weights must hold pairs"),
        ("weights", (("nq", 1), ("nq", 1)), r"data\.weights names 'nq' twice"),
    ],
)
def test_settings_that_choose_nothing(config, key, value, message):
    config.data[key] = value
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_the_fictional_world_has_no_files_to_choose_from():
    config = default_config()
    config.data.world_people = 64
    config.data.weights = (("nq", 1.0),)
    with pytest.raises(ValueError, match=r"data\.weights chooses among the questions of files"):
        check_config(config)


# Streams


def test_which_stream(config):
    questions = [Question(f"{s}:train:{i}", "?", ("A",)) for s in SIZES for i in range(9)]
    plain = open_stream(config, questions, {})
    assert isinstance(plain, QuestionStream) and plain.state() == {"position": 0}
    config.data.weights = (("nq", 1.0), ("hotpotqa", 3.0))
    mixed = open_stream(config, questions, {"position": 8})
    assert mixed.position == 8
    assert [q.source for q in mixed.take(8)].count("hotpotqa") == 6
    config.data.curriculum.enabled, config.data.curriculum.target = True, 0.25
    steered = open_stream(config, questions, {"position": 8})
    assert isinstance(steered, CurriculumStream)
    assert [q.source for q in steered.take(8)].count("hotpotqa") == 6
    assert steered._curriculum.target == 0.25
    again = open_stream(config, questions, steered.state())
    assert again.take(5) == open_stream(config, questions, steered.state()).take(5)


def test_what_was_solved(make_trajectory):
    def group(*answers):
        return [make_trajectory(answer=answer, golden_answers=("Bo", "Bob")) for answer in answers]

    groups = [group("Bo", "the bob!", "x", None), group(None), group("BOB")]
    assert solve_rates(groups) == [0.5, 0.0, 1.0]


class Learner:
    @property
    def abstract_state(self):
        return {"x": jnp.zeros(3)}


def test_the_state_of_a_stream_is_saved_and_restored(config, tmp_path):
    facts = run_facts(config, {"data.questions": "q"})
    state = {"position": 40, "curriculum": {"questions": 3, "rates": "x"}}
    for number, saved in enumerate((state, {"position": 40})):
        with contextlib.closing(RunCheckpoints(tmp_path / str(number), keep=1)) as checkpoints:
            checkpoints.save(5, {"x": jnp.ones(3)}, facts | saved)
            checkpoints._manager.wait_until_finished()
            resumed = take_up(checkpoints, Learner(), facts)
        assert resumed.taken == saved and resumed.position == 40


def test_a_checkpoint_of_before_a_setting_stands_for_its_default(config, tmp_path):
    """Runs that were started by an earlier version go on."""
    facts = run_facts(config, {"data.questions": "q"})
    earlier = json.loads(json.dumps(facts))
    for key in ("weights", "filter", "limit", "curriculum"):
        del earlier["config"]["data"][key]
    del earlier["config"]["seed"]
    with contextlib.closing(RunCheckpoints(tmp_path / "checkpoints", keep=1)) as checkpoints:
        checkpoints.save(5, {"x": jnp.ones(3)}, earlier | {"position": 40})
        checkpoints._manager.wait_until_finished()
    check_resumable(config, tmp_path, facts)
    config.data.curriculum.enabled = True
    with pytest.raises(ValueError, match=r"data\.curriculum\.enabled=False, now it is True"):
        check_resumable(config, tmp_path, run_facts(config, {"data.questions": "q"}))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_run_with_a_curriculum_is_taken_up_again_exactly(derived, tmp_path, same_run):
    """Its rates are part of the checkpoint, beside the position."""
    derived.data.curriculum.enabled = True
    derived.data.curriculum.new = 0.25
    derived.learner.algorithm = "rloo"
    train(derived, tmp_path / "whole")
    rows = read_metrics(tmp_path / "whole")
    assert [0 < row["curriculum/asked"] < 0.1 for row in rows] == [True] * 4
    for steps in (2, 4):
        derived.steps = steps
        train(derived, tmp_path / "run")
    same_run(tmp_path / "run", tmp_path / "whole", steps=(2, 4))


# Prompts that fit


class Engine:
    """Of prompts of one id a byte, 20 at most; counts what it is asked."""

    def __init__(self, sure):
        self.sure, self.asked = sure, []

    def sure_to_fit_bytes(self):
        return self.sure

    def fits(self, question):
        self.asked.append(question.id)
        return len(question.question) <= 20


@pytest.mark.parametrize(("sure", "asked"), [(-1, 6), (10, 4), (20, 1)])
def test_only_prompts_that_may_be_too_long_are_encoded(sure, asked):
    lengths = (5, 20, 21, 8, 19, 12)
    source = [Question(str(i), "q" * length, ("A",)) for i, length in enumerate(lengths)]
    engine = Engine(sure)
    left = questions_that_fit(source, engine, skip=True)
    assert ids(left) == ["0", "1", "3", "4", "5"] and len(engine.asked) == asked
    with pytest.raises(ValueError, match=r"Question 2: its prompt .*; so do those of 1 of 6"):
        questions_that_fit(source, engine, skip=False)
    assert questions_that_fit(source[:2], engine, skip=False) == source[:2]
    with pytest.raises(ValueError, match="No training question fits"):
        questions_that_fit(source[2:3], engine, skip=True)


def test_prompts_are_looked_at_once(tmp_path):
    """Until what they depend on changes; then a start that was refused before may pass."""
    source = [Question(str(i), "q" * (19 + i), ("A",)) for i in range(4)]
    memory = Memory(tmp_path / "data" / "memory.json", {"data.questions": "a", "room": 20})
    asked = []
    for _ in range(2):
        engine = Engine(sure=10)
        assert ids(questions_that_fit(source, engine, skip=True, memory=memory)) == ["0", "1"]
        asked.append(len(engine.asked))
        with pytest.raises(ValueError, match=r"Question 2: its prompt .*; so do those of 2 of 4"):
            questions_that_fit(source, engine, skip=False, memory=memory)
    assert asked == [4, 0]
    other = memory._replace(key={"data.questions": "b", "room": 20})
    assert questions_that_fit(source[:2], Engine(sure=10), skip=False, memory=other) == source[:2]


def test_what_the_memory_of_prompts_depends_on(small_tokenizer, tmp_path):
    config, contents = default_config(), {"data.questions": "a", "prompt": "b", "base": "c"}
    key = prompt_memory(config, contents, small_tokenizer, tmp_path).key
    assert key == {
        "data.questions": "a",
        "prompt": "b",
        "tokenizer": small_tokenizer.fingerprint,
        "max_context_tokens": config.rollout.max_context_tokens,
        "max_observation_tokens": config.rollout.max_observation_tokens,
    }

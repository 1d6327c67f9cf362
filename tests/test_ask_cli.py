"""The program that asks: what it refuses before anything is loaded, and questions to a small
checkpoint from the command line."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest
import small_checkpoints
from flax import nnx

from sr1_jax import ask, cli
from sr1_jax.models import load_pretrained
from sr1_jax.models.lora import LoraConfig, add_adapters
from sr1_jax.models.peft_folder import save_adapters
from sr1_jax.training.checkpoints import RunCheckpoints

PASSAGES = [("Bob", "Bob is the mayor of Brindle."), ("Brindle", "Brindle is a town.")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model, a corpus and a config, in the working directory."""
    (tmp_path / "model").mkdir()
    small_checkpoints.write_folder(tmp_path / "model", small_checkpoints.train_backend())
    with open(tmp_path / "corpus.jsonl", "w") as file:
        for number, (title, text) in enumerate(PASSAGES):
            file.write(json.dumps({"id": str(number), "title": title, "text": text}) + "\n")
    (tmp_path / "config.py").write_text(
        "from sr1_jax.training.settings import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.base.path = 'model'\n"
        "    config.protocol.search_template = 'compact_search'\n"
        "    config.protocol.rag_template = 'compact_rag'\n"
        "    config.rollout.max_searches = 1\n"
        "    config.rollout.max_segment_tokens = 6\n"
        "    config.rollout.max_observation_tokens = 60\n"
        "    config.rollout.max_context_tokens = 160\n"
        "    config.rollout.extend_buckets = (64,)\n"
        "    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def run(*arguments, corpus="corpus.jsonl"):
    ask.main(["ask", "--config=config.py", f"--corpus={corpus}", *arguments])


def refused(monkeypatch, *arguments, **options):
    """The message of what is refused; nothing may be loaded before."""

    def load(*_, **__):
        raise AssertionError("the policy was loaded")

    monkeypatch.setattr(ask, "trained_policy", load)
    with pytest.raises((ValueError, FileNotFoundError)) as error_info:
        run(*arguments, **options)
    return str(error_info.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "There is no question"),
        (("--json",), "--json answers questions of the command line"),
        (("Who?", " "), "A question is empty"),
        (("Who?", "--workdir=runs/none"), "--workdir=runs/none: there is no such folder"),
        (("Who?", "--step=3"), "--step=3: --workdir is missing"),
        (("Who?", "--config.base.path="), "--workdir is missing"),
        (("Who?", "--config.base.path=elsewhere"), "elsewhere"),
        (("Who?", "--method=guess"), "--method=guess: method must be one of search, direct"),
        (("Who?", "--passages=-1"), "--passages must not be negative, not -1"),
        (("Who?", "--temperature=-0.1"), "--temperature must be at least 0, not -0.1"),
        (("Who?", "--temperature=nan"), "--temperature must be at least 0, not nan"),
        (("Who?", "--greedy", "--temperature=1"), "--greedy and --temperature=1.0 exclude"),
        (("Who?", "--config.lora.path=none"), "none"),
        (("Who?", "--config.retrieval.kind=bm26"), "bm26"),
        (("Who?", "--config.rollout.slots=0"), "rollout.slots"),
    ],
)
def test_refusals(folder, monkeypatch, arguments, message):
    assert message in refused(monkeypatch, *arguments)


def test_a_corpus_that_is_not_there(folder, monkeypatch):
    assert "--corpus is missing: search needs passages" in refused(monkeypatch, "Who?", corpus="")
    error = refused(monkeypatch, "Who?", corpus="none.jsonl")
    assert error == "--corpus=none.jsonl: there is no such file or folder."
    error = refused(monkeypatch, "Who?", "--config.data.index=none", corpus="")
    assert error == "data.index=none: there is no such file or folder."


def test_a_question_that_is_too_long(folder):
    with pytest.raises(ValueError, match="leaves no room for an answer"):
        run("Who? " * 100)


def test_questions_as_json(folder, capsys):
    run("Who is Bob?", "Where is Brindle?", "--json", "--passages=1")
    out, err = capsys.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert (first["question"], second["question"]) == ("Who is Bob?", "Where is Brindle?")
    assert first.keys() == {
        "question", "answer", "status", "well_formed", "searches", "calls", "prompt_passages",
        "spans", "seconds", "first_text_seconds", "tokens",
    }  # fmt: skip
    assert "Who is Bob?" in first["spans"][0][1] and first["spans"][0][0] == 0
    assert first["status"] in ("answered", "truncated", "no_answer")
    assert "compiling" in err and "loading the policy" in err
    # Greedy: a random policy says the same again, another time.
    run("Who is Bob?", "--json", "--passages=1")
    (again,) = map(json.loads, capsys.readouterr()[0].splitlines())
    assert again["spans"] == first["spans"]


def test_other_methods_and_a_workdir_that_keeps_the_index(folder, capsys):
    run("Who is Bob?", "--method=rag", "--temperature=1", "--workdir=kept", "--base")
    out, _ = capsys.readouterr()
    assert out.startswith("question  Who is Bob?\n   found  1. Bob\n             Bob is the mayor")
    assert "\x1b" not in out
    assert [path.name for path in (folder / "kept").iterdir()] == ["data"]
    run("Who is Bob?", "--method=direct", corpus="")
    assert "found" not in capsys.readouterr()[0]


def spans(capsys, *arguments):
    run("Who is Bob?", "--json", "--method=direct", *arguments, corpus="")
    return json.loads(capsys.readouterr()[0])["spans"]


def test_adapters_answer_otherwise_than_their_base(folder, capsys):
    model = add_adapters(load_pretrained("model")[0], LoraConfig(2, 6.0, ("q", "down")), seed=3)
    state = nnx.state(model, nnx.LoRAParam)
    nnx.update(model, jax.tree.map(lambda x: x + 0.3, state))
    save_adapters(model, folder / "adapters")
    plain, adapted = spans(capsys), spans(capsys, "--config.lora.path=adapters")
    assert plain[0] == adapted[0]  # the prompt
    assert plain[1] != adapted[1]


class Loaded(Exception):
    """The policy that was asked for: base, step."""


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("--workdir=run",), (False, 8)),
        (("--workdir=run", "--step=4"), (False, 4)),
        (("--workdir=run", "--step=best"), (False, 4)),
        (("--workdir=run", "--base"), (True, None)),
        ((), (True, None)),
    ],
)
def test_checkpoints_of_a_run(folder, monkeypatch, arguments, asked):
    with RunCheckpoints(folder / "run" / "checkpoints", keep=5) as checkpoints:
        for step in (4, 8):
            facts = {"config": {}, "position": 0}
            checkpoints.save(step, {"x": jnp.zeros(1)}, facts, score=1 / step)

    def load(config, workdir, mesh, *, base, step):
        raise Loaded(base, step)

    monkeypatch.setattr(ask, "trained_policy", load)
    with pytest.raises(Loaded) as error_info:
        run("Who?", *arguments)
    assert error_info.value.args == asked
    with pytest.raises(ValueError, match="--step=5: run/checkpoints has no such checkpoint"):
        run("Who?", "--workdir=run", "--step=5")


def test_help_and_errors_of_the_program(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ask", "--help"])
    with pytest.raises(SystemExit):
        cli.run(ask.main)
    assert "--passages" in capsys.readouterr()[0]
    monkeypatch.setattr(sys, "argv", ["ask", "Who?"])
    with pytest.raises(SystemExit) as exit_info:
        cli.run(ask.main)
    assert exit_info.value.code == 2
    assert capsys.readouterr()[1] == "error: --config is missing.\n"


def test_a_prompt_at_a_terminal(folder, monkeypatch, capsys):
    class Terminal:
        def __init__(self, stream):
            self._stream = stream

        def isatty(self):
            return True

        def __getattr__(self, name):
            return getattr(self._stream, name)

    lines = iter(["Who is Bob?"])

    def read(prompt):
        assert prompt.strip() == "question"
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", Terminal(sys.stdin))
    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    run()
    out, _ = capsys.readouterr()
    assert "Ctrl-C breaks off an answer, Ctrl-D ends." in out and " tokens · " in out

"""Flags, help, settings of files and of the command line, and errors as one line."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from absl import flags

from sr1_jax import __main__ as listing
from sr1_jax import cli
from sr1_jax.exit_codes import ExitCode
from sr1_jax.terminal import printable
from sr1_jax.training.settings import MOVED, RUN, unknown_setting

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def sigterm():
    """What SIGTERM did before a test, it does after."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def load(tmp_path):
    """Function of (lines of get_config, flags) -> the settings; `c` is the default config."""

    def load(body="", *arguments, name="mine.py", argument="", head=""):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"from sr1_jax.training.settings import default_config\n{head}\n"
            f"def get_config({'argument' if argument else ''}):\n    c = default_config()\n"
            + textwrap.indent(body, "    ")
            + "\n    return c\n"
        )
        return parse(f"--config={path}{argument}", *arguments)

    return load


def parse(*arguments):
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    flags.DEFINE_string("workdir", None, "Folder.", flag_values=values)
    cli.parse(values, ["program", *arguments], required=("config",), usage="usage")
    return values.config


def refused(load, *arguments, **options):
    with pytest.raises(ValueError) as error_info:
        load(*arguments, **options)
    return str(error_info.value)


# Settings on the command line


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--config.steps=12_000", 12_000),
        ("-config.steps=7", 7),
        ("--config.learner.clip=1", 1.0),
        ("--config.learner.learning_rate=3e-4", 3e-4),
        ("--config.learner.clip_high=0.28", 0.28),
        ("--config.learner.value_clip=None", None),
        ("--config.learner.value_clip=none", None),
        ("--config.rollout.profile=true", True),
        ("--config.rollout.profile=1", True),
        ("--config.rollout.profile", True),
        ("--noconfig.learner.whiten", False),
        ("--config.learner.whiten=False", False),
        ("--config.base.path=None", "None"),  # a text, whatever it looks like
        ("--config.base.path=a=b", "a=b"),
        ("--config.base.path=", ""),
        ("--config.base.remat=none", "none"),
        ("--config.base.remat=true", True),
        ("--config.warm_start.phases=()", ()),
        ("--config.lora.targets=('q', 'v')", ("q", "v")),
        ("--config.lora.targets=q,v", ("q", "v")),
        ("--config.lora.targets=q", ("q",)),
        ("--config.lora.targets='q'", ("q",)),
        ("--config.learner.length_buckets=[64, 128]", (64, 128)),
        ("--config.learner.length_buckets=64,128", (64, 128)),
        ("--config.learner.length_buckets=64", (64,)),
        ("--config.reward.terms=(('f1', 0.5), ('m:f', 1))", (("f1", 0.5), ("m:f", 1))),
    ],
)
def test_values(load, argument, value):
    config = load("", argument)
    key = argument.partition("config.")[2].partition("=")[0]
    found = config
    for part in key.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


def test_a_value_may_stand_apart_and_the_last_one_counts(load):
    config = load("", "--config.mesh.data", "-1", "--config.steps=1", "--config.steps", "2")
    assert (config.mesh.data, config.steps) == (-1, 2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.steps=many", "steps takes a whole number, not 'many'."),
        ("--config.steps=1.5", "steps takes a whole number, not '1.5'."),
        ("--config.steps=true", "steps takes a whole number, not 'true'."),
        ("--config.learner.clip=wide", "learner.clip takes a number, not 'wide'."),
        ("--config.rollout.profile=2", "rollout.profile takes true or false, not '2'."),
        ("--config.steps", "--config.steps has no value; write --config.steps=VALUE."),
        ("--config.rollout=3", "rollout is a section; set its keys, as rollout.KEY=VALUE."),
        ("--config.steps.more=3", "There is no setting steps.more."),
        ("--config.nokey=1", "--config.nokey: There is no setting nokey."),
        (
            "--config.rollout.temprature=1",
            "There is no setting rollout.temprature. Did you mean rollout.temperature?",
        ),
        ("--config.temperature=1", "Did you mean rollout.temperature?"),
        ("--config.rollout.chat=true", "no setting rollout.chat any more: use protocol.chat."),
        ("--config.templates.search=x", "use protocol.search_template."),
        ("--config.environment.options.search.thread=1", "no setting environment.options.search."),
        ("--config.environment.options.search=1", "environment.options.search is a section"),
    ],
)
def test_bad_settings_name_key_and_value(load, argument, message):
    error = refused(load, "", argument)
    assert message in error and argument.partition("=")[0] in error


def test_every_setting_that_moved_has_its_new_name(load):
    for old, new in MOVED.items():
        assert f"no setting {old} any more: use {new}." in refused(load, "", f"--config.{old}=1")


@pytest.mark.parametrize("section", ["environment.options.calc", "retrieval.options"])
def test_open_sections_take_keys_that_nobody_declared(load, section):
    given = {"url": "http://a:1/b=c", "depth": "3", "names": "('a', 'b')", "on": "true", "s": "x y"}
    config = load(
        "c.retrieval.options.depth = 'deep'",
        *(f"--config.{section}.{key}={value}" for key, value in given.items()),
    )
    options = (
        config.retrieval.options if "retrieval" in section else config.environment.options.calc
    )
    assert options.to_dict() == {
        "url": "http://a:1/b=c", "depth": 3, "names": ("a", "b"), "on": True, "s": "x y",
    }  # fmt: skip


def test_open_sections_of_a_locked_config(load):
    config = load("c.lock()", "--config.environment.options.calc.inner.depth=3")
    assert config.environment.options.calc.inner.depth == 3
    assert config.environment.options.search.threads == 4


# Files of settings


def test_an_argument_reaches_get_config(load):
    assert load("c.steps = int(argument)", argument=":31").steps == 31
    assert load("c.base.path = argument", argument=":a:b=c").base.path == "a:b=c"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "mine.py:5: ZeroDivisionError: division by zero"),
        ("raise ValueError('no such size')", "mine.py:5: no such size"),
        ("c.nokey = 1", "mine.py:5: There is no setting nokey."),
        ("\nc.rollout.temprature = 1", "mine.py:6: There is no setting rollout.temprature. Did"),
        ("x = c.learner.clip_hi", "mine.py:5: There is no setting learner.clip_hi. Did you mean"),
        ("c['learner']['clip_hi'] = 1", "mine.py:5: There is no setting learner.clip_hi."),
        ("c.update({'rollout': {'chat': 1}})", "mine.py:5: There is no setting rollout.chat any"),
        ("r = c.rollout; r.chat = True", "rollout.chat any more: use protocol.chat."),
        ("c.steps = 'many'", "mine.py:5: steps takes a whole number, not 'many'."),
        ("c.learner.clip = (1,)", "mine.py:5: learner.clip takes a number, not (1,)."),
        ("c.learner = 3", "mine.py:5: learner is a section; set its keys, as learner.KEY = …"),
        ("c.steps = = 3", "mine.py:5: SyntaxError: invalid syntax"),
        ("import nothing_there", "mine.py:5: ModuleNotFoundError: No module named 'nothing_there'"),
        ("raise KeyError('\\x1b[2Jx')", "mine.py:5: KeyError: '\\x1b[2Jx'"),
        ("c = {}", "mine.py: get_config() must return the settings, but returned a dict."),
    ],
)
def test_an_error_in_a_file_shows_its_line(load, monkeypatch, tmp_path, body, message):
    monkeypatch.chdir(tmp_path)  # paths are shown as one would write them here
    assert message in refused(load, body)


def test_an_error_at_the_top_of_a_file(load, tmp_path):
    assert f"{tmp_path}/mine.py:2: NameError: name 'oops'" in refused(load, "", head="oops")


def test_the_line_is_that_of_the_file_at_fault(load, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "parent.py").write_text("def get():\n    return [][1]\n")
    error = refused(load, "parent.get()", name="own/mine.py", head="from own import parent")
    assert error == f"{tmp_path}/own/parent.py:2: IndexError: list index out of range"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.py", "--config=none.py: none.py is no file"),
        ("none.py:x=1", "--config=none.py:x=1: none.py is no file"),
        ("configs", "--config=configs: configs is no file; give one such as configs/demo.py."),
        (f"{ROOT}/configs/demo.py:fast", "demo.py: get_config() takes no argument, but :fast is"),
        (f"{ROOT}/configs/__init__.py", "__init__.py: there is no function get_config in it."),
    ],
)
def test_what_is_no_file_of_settings(text, message):
    with pytest.raises(ValueError) as error_info:
        parse(f"--config={text}")
    assert message in str(error_info.value)


def as_program(*arguments, cwd=ROOT):
    code = (
        "from absl import flags; from sr1_jax import cli\n"
        "from sr1_jax.training.settings import RUN, unknown_setting\n"
        "def main(argv):\n"
        "    values = flags.FlagValues(); cli.config_flag(values, RUN, unknown_setting)\n"
        "    cli.parse(values, argv, required=('config',), usage='usage')\n"
        "    print(values.config.learner.algorithm, values.config.rollout.slots)\n"
        "cli.run(main)"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_configs_work_from_any_directory(tmp_path):
    # A folder of the same name here is not the one that is meant.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    done = as_program(f"--config={ROOT}/configs/demo_grpo.py", cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("grpo 128\n", "", 0)


def test_a_bad_argument_is_one_line():
    done = as_program("--config=configs/qwen2_5.py:size=99b")
    assert done.returncode == 2 and done.stdout == ""
    lines = (ROOT / "configs" / "qwen2_5.py").read_text().splitlines()
    line = next(i for i, text in enumerate(lines, start=1) if "published_config(argument" in text)
    assert done.stderr == (
        f"error: configs/qwen2_5.py:{line}: config argument 'size=99b': size must be one of 0.5b, "
        "1.5b, 3b, 7b, 14b, 32b, 72b.\n"
    )


def test_settings_of_two_folders_with_one_name(load, tmp_path):
    """The second file imports its own neighbour, not that of the first."""
    for folder, steps in (("one", 1), ("two", 2)):
        (tmp_path / folder / "own").mkdir(parents=True)
        (tmp_path / folder / "own" / "parent.py").write_text(f"STEPS = {steps}\n")
        name = f"{folder}/own/mine.py"
        config = load("c.steps = parent.STEPS", name=name, head="from own import parent")
        assert config.steps == steps
    assert str(tmp_path / "one") not in sys.path


# Help


def test_help_lists_every_setting_within_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_info:
        parse("--help", "--config.nokey=1")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    section = {}
    for key, setting in RUN.walk():
        where, _, name = key.rpartition(".")
        section.setdefault(where, []).append(name)
        assert f" {name}={' '.join(repr(setting.default).split())}" in words, key
        assert " ".join(setting.meaning.split()) in words, key
    lines = text.splitlines()
    for where in filter(None, section):
        assert lines.count(where) + lines.count(f"{where} …") == 1, where
    assert "  slots=64*                       episodes in flight" in lines
    assert "  profile=False*                  wait for every program" in text
    assert "retrieval.options …" in lines  # it takes keys of the user's own
    assert "  --workdir                       Folder." in lines


def test_help_without_settings_lists_flags_alone(capsys):
    values = flags.FlagValues()
    flags.DEFINE_enum("dtype", "b", ["a", "b"], "Of weights.", flag_values=values)
    flags.DEFINE_bool("fast", True, "Hurry.", flag_values=values)
    with pytest.raises(SystemExit):
        cli.parse(values, ["program", "-h"], required=(), usage="\nHow to use it.\n")
    assert capsys.readouterr().out.splitlines() == [
        "How to use it.",
        "",
        "Flags",
        "  --dtype=b                       <a|b>: Of weights.",
        "  --fast=true                     Hurry.",
    ]


def test_the_package_lists_its_commands(capsys):
    listing.main(["sr1_jax"])
    text = capsys.readouterr().out
    assert "python -m sr1_jax.train            Trains a policy to search." in text
    assert max(map(len, text.splitlines())) <= 80
    assert "python -m sr1_jax.compare " in text
    assert "cli" not in text and "lock" not in text
    with pytest.raises(ValueError, match=r"python -m sr1_jax\.train, with a dot"):
        listing.main(["sr1_jax", "train"])
    with pytest.raises(ValueError, match=r"no command 'trian'; there are ask, compare, "):
        listing.main(["sr1_jax", "trian"])


def test_the_package_as_a_program():
    command = [sys.executable, "-m", "sr1_jax"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and "sr1_jax.evaluate" in done.stdout


def test_the_command_line_does_not_import_training():
    code = "import sys, sr1_jax.cli; print([m for m in sys.modules if 'sr1_jax.training' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Errors


@pytest.fixture
def failing(monkeypatch, capsys):
    """Function of an error -> (exit code, stderr) of a program that raises it."""
    monkeypatch.delenv("SR1_JAX_TRACEBACK", raising=False)

    def run(error):
        def main(argv):
            raise error

        with pytest.raises(SystemExit) as exit_info:
            cli.run(main)
        return exit_info.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  b"), "error: a b\n"),
        (FileNotFoundError(2, "No such file", "x\x1b[2J.jsonl"), "error: [Errno 2] No such file:"),
        (ValueError("title \x1b]0;pwned\x07 \x1b]52;c;eA==\x1b\\"), "error: title ]0;pwned ]52;c"),
        (ValueError(), "error: ValueError()\n"),
    ],
)
def test_an_error_is_one_line_without_control_characters(failing, error, line):
    code, text = failing(error)
    assert code == 2 and text.startswith(line) and text.count("\n") == 1
    assert printable(text) == text


def test_an_unexpected_error_leaves_its_traceback(failing):
    code, text = failing(TypeError("bad \x1b[2J"))
    assert code == ExitCode.DEFECT and "Traceback" in text
    assert text.endswith("TypeError: bad [2J\nerror: TypeError('bad \\x1b[2J')\n")


def test_tracebacks_where_they_are_asked_for_or_a_device_failed(failing, monkeypatch):
    code, text = failing(jax.errors.JaxRuntimeError("INTERNAL: chip 3 halted"))
    assert code == ExitCode.TRANSIENT and "Traceback" in text
    assert text.endswith("error: INTERNAL: chip 3 halted\n")
    assert "Traceback" not in failing(ValueError("x"))[1]
    monkeypatch.setenv("SR1_JAX_TRACEBACK", "1")
    code, text = failing(ValueError("x"))
    assert code == ExitCode.BAD_INPUT and "Traceback" in text and text.endswith("\nerror: x\n")


def test_ctrl_c(failing):
    assert failing(KeyboardInterrupt()) == (ExitCode.INTERRUPTED, "interrupted\n")


def test_sigterm_ends_a_program_where_it_is(capsys):
    """What it holds is released, nothing takes it for an error to try again after, and a second
    signal does not disturb its end."""
    steps = []

    def main(argv):
        try:
            with contextlib.suppress(Exception):
                os.kill(os.getpid(), signal.SIGTERM)
                steps.append("went on")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("released")

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == ExitCode.TERMINATED
    assert steps == ["released"]
    assert capsys.readouterr().err == "Told to end (SIGTERM). Start again to go on.\n"

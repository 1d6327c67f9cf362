"""Asks a policy questions, and shows what it thinks, searches, reads and answers.

    python -m sr1_jax.ask --config=configs/smollm2_qa.py --corpus=corpus.jsonl.gz \\
        "who wrote the novel that the film Blade Runner is based on"

Several questions are answered one after the other; without any, at a terminal, a prompt takes them.
There Ctrl-C breaks off an answer and Ctrl-D ends. With --workdir the policy of a run answers, its
newest checkpoint or that of --step=N or --step=best; without it what base.path or base.workdir
names, a pretrained model or an exported folder, with the adapters of lora.path. --json writes one
JSON object a question.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
from absl import flags
from rich.console import Console

from sr1_jax import cli
from sr1_jax.asking import (
    Asker,
    View,
    answer_all,
    asking_config,
    check_text,
    converse,
    make_console,
    write_all,
)
from sr1_jax.environment import settings as environment_settings
from sr1_jax.environment.tool import check_tools
from sr1_jax.evaluation import methods
from sr1_jax.evaluation.progress import working
from sr1_jax.models import Tokenizer
from sr1_jax.paths import path_or_none
from sr1_jax.protocol.tags import THINK
from sr1_jax.retrieval.open import check_retrieval, needs_corpus
from sr1_jax.rollout import SplitEngine
from sr1_jax.sharding import make_mesh
from sr1_jax.training import task
from sr1_jax.training.checks import check_mesh, check_paths
from sr1_jax.training.policies import check_base, trained_policy
from sr1_jax.training.saved_run import find_run, step_flag
from sr1_jax.training.settings import RUN, unknown_setting
from sr1_jax.workdirs import workdir_of_run

_PROMPT = "\nquestion  "


class Choices(NamedTuple):
    """How questions are answered; see the flags."""

    method: str = ""
    greedy: bool = True
    temperature: float | None = None
    passages: int = 0
    base: bool = False
    step: int | str | None = None

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: naming flag and value.
        """
        if self.method:
            try:
                methods.check_method(self.method)
            except ValueError as error:
                raise ValueError(f"--method={self.method}: {error}") from error
        if self.passages < 0:
            raise ValueError(
                f"--passages must not be negative, not {self.passages}; 0 stands for "
                "rollout.passages."
            )
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise ValueError(f"--temperature must be at least 0, not {self.temperature}.")


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define, default = {"flag_values": values}, Choices()
    flags.DEFINE_string("workdir", "", "Folder of a run, whose policy answers; without it base.path"
                        " or base.workdir name one. It keeps the index.", **define)  # fmt: skip
    step_flag(values)
    flags.DEFINE_bool("base", default.base, "The policy that the run started from.", **define)
    flags.DEFINE_string("corpus", "", "Passages, JSON lines; where none is given those of the "
                        "config.", **define)  # fmt: skip
    flags.DEFINE_string("method", default.method, "How questions are answered, one of "
                        f"{', '.join(methods.METHODS)}; without it that of the config.",
                        **define)  # fmt: skip
    flags.DEFINE_bool("greedy", default.greedy, "Greedy decoding instead of sampling.", **define)
    flags.DEFINE_float("temperature", None, "Samples at this temperature.", **define)
    flags.DEFINE_integer("passages", default.passages, "That a search brings back; 0: as the "
                         "config says.", **define)  # fmt: skip
    flags.DEFINE_bool("whole", False, "Shows passages whole, not their first two lines.", **define)
    flags.DEFINE_bool("json", False, "Writes one JSON object a question.", **define)
    questions = cli.parse(values, argv, required=("config",), usage=__doc__, positional=True)
    _check_questions(questions, as_json=values.json)
    if values.temperature is not None:
        if values["greedy"].present and values.greedy:
            raise ValueError(
                f"--greedy and --temperature={values.temperature} exclude each other; leave one "
                "out."
            )
        values.greedy = False
    opened = workdir_of_run(values.workdir, "ask") if values.workdir else nullcontext()
    with opened as workdir:
        asker, tokenizer, tags = load(
            values.config,
            Choices(**{name: values[name].value for name in Choices._fields}),
            workdir=workdir,
            corpus=path_or_none(values.corpus, "--corpus"),
        )
    for question in questions:
        asker.check(question)
    if values.json:
        write_all(asker, questions, tokenizer, sys.stdout)
        return
    view = View(make_console(), tags, whole_passages=values.whole)
    if questions:
        answer_all(asker, questions, view)
    else:
        _converse(asker, view)


def load(
    config: ml_collections.ConfigDict,
    choices: Choices,
    *,
    workdir: Path | None = None,
    corpus: Path | None = None,
) -> tuple[Asker, Tokenizer, list[str]]:
    """Loads a policy and what it searches, and compiles all that an answer needs.

    Args:
        config: of the run.
        choices: see `Choices`.
        workdir: of the run; None: the policy that base.path or base.workdir names.
        corpus: passages; None stands for those of the config.

    Returns:
        What answers, the policy's tokenizer, and the tags in which it asks its tools.

    Raises:
        ValueError, FileNotFoundError: bad settings, or there is no such policy or corpus; found
            before anything is loaded.
    """
    choices.check()
    method = choices.method or config.method
    _check_settings(config, method)
    step = _step_of(config, choices, workdir)
    searches = methods.needs_retriever(config, method)
    if searches and needs_corpus(config.retrieval):
        _check_corpus(config, corpus, method)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    config = asking_config(config, mesh, passages=choices.passages, temperature=choices.temperature)
    check_mesh(config, mesh, training=False)
    check_base(config, mesh)
    console = Console(stderr=True)
    retriever = None
    if searches:
        with working("opening the index", console):
            folder = workdir and workdir / "data"
            retriever = task.corpus_retriever(config, corpus, folder)
    with working("loading the policy", console):
        base = choices.base or workdir is None
        policy, tokenizer, _ = trained_policy(config, workdir or Path(), mesh, base=base, step=step)
        engine = methods.make_engine(
            policy,
            tokenizer,
            retriever,
            config,
            method,
            greedy=choices.greedy,
            mesh=mesh,
            keeps_caches=True,
        )
    asker = Asker(engine, config.seed)
    with working("compiling", console):
        asker.warm_up()
    return asker, tokenizer, _request_tags(engine)


def _check_questions(questions: Sequence[str], *, as_json: bool) -> None:
    """Refuses to wait for questions where nobody types any."""
    for question in questions:
        check_text(question)
    if questions:
        return
    if as_json:
        raise ValueError('--json answers questions of the command line: ask "…" after the flags.')
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError(
            'There is no question: ask "…" after the flags. Only at a terminal a prompt takes them.'
        )


def _check_settings(config: ml_collections.ConfigDict, method: str) -> None:
    RUN.check(config)
    check_paths(config)
    environment_settings.check_config(config.environment)
    check_tools(config.environment.tools, config)
    check_retrieval(config.retrieval, config.rollout.passages)
    methods.check_method(method)
    methods.check_templates(config, method)


def _step_of(
    config: ml_collections.ConfigDict, choices: Choices, workdir: Path | None
) -> int | None:
    """Of the checkpoint to load; None: of none.

    Raises:
        ValueError: there is no such policy.
    """
    if workdir is not None:
        return find_run(config, workdir, base=choices.base, step=choices.step).step
    if choices.step is not None:
        raise ValueError(f"--step={choices.step}: --workdir is missing, the folder of the run.")
    if not (config.base.path or config.base.workdir):
        raise ValueError(
            "--workdir is missing: name the folder of a run, or a policy by --config.base.path."
        )
    return None


def _check_corpus(config: ml_collections.ConfigDict, corpus: Path | None, method: str) -> None:
    """Refuses a corpus or an index that is not there, before the policy is loaded."""
    given = {
        "--corpus": corpus,
        "data.index": config.data.index,
        "data.corpus": config.data.corpus,
    }
    for name, path in given.items():
        if path:
            if not Path(path).exists():
                raise FileNotFoundError(f"{name}={path}: there is no such file or folder.")
            return
    raise ValueError(
        f"--corpus is missing: {method} needs passages. --method=direct answers without any."
    )


def _request_tags(engine: SplitEngine) -> list[str]:
    """The tags of the blocks in which a policy asks its tools."""
    found = (tool.request_tag for tool in engine.tags.tools)
    return [tag for tag in found if tag != THINK]


def _converse(asker: Asker, view: View) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # lines that can be edited, and those before
    print("Ctrl-C breaks off an answer, Ctrl-D ends.")
    converse(asker, view, lambda: input(_PROMPT))
    print()


def _keep_programs() -> None:
    """Keeps compiled programs between calls: in JAX_COMPILATION_CACHE_DIR, or the user's cache."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "sr1_jax" / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


if __name__ == "__main__":
    _keep_programs()
    cli.run(main)

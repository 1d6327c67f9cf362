"""Evaluates a policy on question files.

    python -m sr1_jax.evaluate --config=configs/smollm2_qa.py --workdir=runs/qa \\
        --questions=nq.jsonl,hotpotqa.jsonl --corpus=corpus.jsonl.gz --method=search [--limit=100]

Takes the policy of the newest checkpoint in the workdir, or of --step; with --base the one that
training starts from. Each file's result goes to workdir/eval/*.json as soon as it is known, every
trajectory beside it; with several files also their average. Prints all results so far on the same
questions, or the scores by file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import rich
from absl import flags
from flax import nnx

from sr1_jax import cli, cluster
from sr1_jax.agreement import check_same, once_a_file_system
from sr1_jax.data.questions import Question, read_questions
from sr1_jax.environment import settings as environment_settings
from sr1_jax.evaluation import methods, rejection, results
from sr1_jax.evaluation.progress import working
from sr1_jax.evaluation.scores import (
    clustered_standard_error,
    questions_sha256,
    score_of_those_run,
)
from sr1_jax.paths import local_path, local_paths
from sr1_jax.retrieval import Retriever, fingerprint_of
from sr1_jax.retrieval.open import needs_corpus
from sr1_jax.rewards import exact_match
from sr1_jax.rollout.engine import as_metrics
from sr1_jax.sharding import make_mesh
from sr1_jax.training import task
from sr1_jax.training.checks import check_mesh, check_paths
from sr1_jax.training.policies import check_base, trained_policy
from sr1_jax.training.same_settings import as_json_values
from sr1_jax.training.saved_run import SavedRun, find_run
from sr1_jax.training.settings import RUN, unknown_setting


class Options(NamedTuple):
    """How an evaluation is run.

    Attributes:
        method: how questions are answered.
        limit: first so many questions of a file; 0: all.
        base: the policy that training starts from, whatever was trained since.
        greedy: instead of sampling.
        samples: episodes a question.
        step: of the checkpoint; None: the newest.
    """

    method: str = "search"
    limit: int = 0
    base: bool = False
    greedy: bool = True
    samples: int = 1
    step: int | None = None

    def check(self) -> None:
        """Refuses what cannot be run.

        Raises:
            ValueError: naming flag and value.
        """
        if self.limit < 0:
            raise ValueError(f"--limit must not be negative, not {self.limit}; 0 stands for all.")
        if self.samples < 1:
            raise ValueError(f"--samples must be at least 1, not {self.samples}.")
        if self.samples > 1 and self.greedy:
            raise ValueError(
                f"--samples={self.samples}: greedy decoding gives the same every time; add "
                "--greedy=false."
            )


class QuestionFile(NamedTuple):
    """The questions of a file, and what results call them."""

    name: str
    questions: list[Question]
    sha256: str


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the run.", **define)
    flags.DEFINE_string("questions", None, "JSON lines; several files with commas.", **define)
    flags.DEFINE_string("corpus", "", "Passages, JSON lines; where none is given those of the "
                        "config.", **define)  # fmt: skip
    flags.DEFINE_enum(
        "method", "search", list(methods.METHODS), "How questions are answered.", **define
    )
    flags.DEFINE_integer("limit", 0, "First so many questions of a file; 0: all.", **define)
    flags.DEFINE_bool("base", False, "The policy that training starts from.", **define)
    flags.DEFINE_bool("greedy", True, "Greedy decoding instead of sampling.", **define)
    flags.DEFINE_integer("samples", 1, "Episodes a question, with --greedy=false.", **define)
    flags.DEFINE_integer("step", None, "The checkpoint after so many steps; without it the "
                         "newest.", **define)  # fmt: skip
    cluster.define_flags(values)
    cli.parse(values, argv, required=("config", "workdir", "questions"), usage=__doc__)
    cluster.join_by_flags(values)
    evaluate(
        values.config,
        local_path(values.workdir, "--workdir"),
        local_paths(values.questions, "--questions"),
        local_path(values.corpus, "--corpus") if values.corpus else None,
        Options(**{name: values[name].value for name in Options._fields}),
    )


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    paths: Sequence[Path],
    corpus: Path | None,
    options: Options,
) -> list[dict[str, Any]]:
    """Answers question files by one method; writes and returns the result of each.

    Several processes share the questions, and the first writes.

    Args:
        config: of the run.
        workdir: of the run; only data and eval below it are written.
        paths: question files.
        corpus: passages; None stands for those of the config.
        options: see `Options`.

    Raises:
        ValueError, FileNotFoundError: bad settings or data, or there is no such policy; found
            before anything is written or loaded.
    """
    options.check()
    _check_settings(config, options.method)
    files = _read_files(paths, options.limit)
    needs_passages = methods.needs_retriever(config, options.method)
    has_corpus = corpus or config.data.corpus or config.data.index
    if needs_passages and needs_corpus(config.retrieval) and not has_corpus:
        raise ValueError(f"--corpus is missing: {options.method} needs passages.")
    run = find_run(config, workdir, base=options.base, step=options.step)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_mesh(config, mesh, training=False)
    check_base(config, mesh)
    asked = {"options": options._asdict(), "questions (hashes)": [file.sha256 for file in files]}
    check_same("The evaluation", {"config": config.to_dict()} | asked)
    retriever = _retriever(config, corpus, workdir / "data") if needs_passages else None
    changes = _changes(config, options, run, retriever)
    with working("loading the policy"):
        policy, tokenizer, origin = trained_policy(
            config, workdir, mesh, base=options.base, step=run.step
        )
    engine = methods.make_engine(
        policy, tokenizer, retriever, config, options.method, greedy=options.greedy, mesh=mesh
    )
    params = nnx.state(policy)
    settings = _settings_of(config, options) | {"searched": _searched(retriever)}
    folder, found = workdir / "eval", []
    for file in files:
        result, trajectories = _answer(engine, params, file, options, config.seed + 1)
        result |= {"policy": origin, "settings_changed": changes}
        found.append(result)
        if cluster.is_first():
            name = results.result_name(result, settings)
            if options.method == "rejection":
                result |= rejection.write_examples(folder, name, trajectories)
            results.write_result(folder, name, result, trajectories, tokenizer)
    if cluster.is_first():
        _summarise(folder, found, settings)
    return found


def _check_settings(config: ml_collections.ConfigDict, method: str) -> None:
    RUN.check(config)
    check_paths(config)
    environment_settings.check_config(config.environment)
    methods.check_templates(config, method)


def _read_files(paths: Sequence[Path], limit: int) -> list[QuestionFile]:
    files: dict[tuple[str, str], Path] = {}
    read = []
    for path in paths:
        questions = read_questions(path)
        questions = questions[:limit] if limit else questions
        name = re.sub(r"(\.jsonl?)?(\.gz)?$", "", path.name)
        file = QuestionFile(name, questions, questions_sha256(questions))
        if (name, file.sha256) in files:
            raise ValueError(
                f"--questions: {path} has the questions of {files[name, file.sha256]}, whose "
                "result it would overwrite; leave one out."
            )
        files[name, file.sha256] = path
        read.append(file)
    return read


def _retriever(config: ml_collections.ConfigDict, corpus: Path | None, folder: Path) -> Retriever:
    """The retriever over a corpus, or over what the config names; an index goes to `folder`."""

    def opened() -> Retriever:
        if corpus is not None:
            return task.open_index(config, corpus, folder)
        return task.run_retriever(config, folder)

    with working("opening the index"):
        retriever = once_a_file_system(folder, opened)
    check_same("What is searched", _searched(retriever))
    return retriever


def _searched(retriever: Retriever | None) -> str:
    return fingerprint_of(retriever) if retriever else ""


def _settings_of(config: ml_collections.ConfigDict, options: Options) -> dict[str, Any]:
    plain = as_json_values(config.to_dict())
    return results.answering_settings(plain, options.method, greedy=options.greedy)


def _changes(
    config: ml_collections.ConfigDict,
    options: Options,
    run: SavedRun,
    retriever: Retriever | None,
) -> results.Changes | None:
    """Settings that differ from those of the run, also printed; None if there is no run."""
    if "config" not in run.facts:
        return None
    before = results.answering_settings(
        RUN.without_free(run.facts["config"]), options.method, greedy=options.greedy
    )
    # What a resumed run may change was not kept with the run.
    fixed = RUN.without_free(as_json_values(config.to_dict()))
    now = results.answering_settings(fixed, options.method, greedy=options.greedy)
    changes = dict(results.changed_settings(before, now))
    contents = run.facts.get("contents", {})
    here = {"data.corpus": _searched(retriever)}
    if run.facts["config"].get("method") == options.method:
        here["prompt"] = methods.prompt_fingerprint(config, options.method)
    for key, found in here.items():
        kept = contents.get(key, "")
        if kept and found and kept != found:
            changes[key] = (kept[:8], found[:8])
    if changes and cluster.is_first():
        cli.notice(f"These settings are not those of the run: {results.describe(changes)}.")
    return changes


def _answer(
    engine: Any, params: nnx.State, file: QuestionFile, options: Options, seed: int
) -> tuple[dict[str, Any], list]:
    """The result of a question file, and its trajectories."""
    began = time.perf_counter()
    with working(f"answering {len(file.questions)} questions of {file.name}"):
        trajectories = engine.run(file.questions, seed=seed, samples=options.samples, params=params)
    scores = score_of_those_run(trajectories, file.questions)
    exact = [float(exact_match(t.answer, t.golden_answers)) for t in trajectories]
    ids = [trajectory.question_id for trajectory in trajectories]
    result = {
        "questions": file.name,
        "questions_sha256": file.sha256,
        "count": len(set(ids)),
        **{key: getattr(options, key) for key in ("method", "greedy", "samples", "limit")},
        "seconds": time.perf_counter() - began,
        **scores,
        **as_metrics(engine.stats),
        "em_standard_error": clustered_standard_error(exact, ids),
    }
    return result, trajectories


def _summarise(
    folder: Path, found: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Prints the results; where there are several files, writes their average too."""
    console = rich.get_console()
    if len(found) == 1:
        sha256 = found[0]["questions_sha256"]
        results.print_results(list(results.read_results(folder, sha256)), console)
        return
    mean = results.average(found)
    results.write_result(folder, results.result_name(mean, settings), mean, [], None)
    results.print_files(found, mean, console)


if __name__ == "__main__":
    cli.run(main)

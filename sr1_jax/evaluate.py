"""Evaluates a policy on question files.

    python -m sr1_jax.evaluate --config=configs/smollm2_qa.py --workdir=runs/qa \\
        --questions=nq.jsonl,hotpotqa.jsonl --corpus=corpus.jsonl.gz --method=search,rag

Takes the policy of the newest checkpoint in the workdir, or of --step; with --base the one that
training starts from. The result of each method on each file goes to workdir/eval/*.json as soon as
it is known, every trajectory and its scores beside it; with several files also their average, with
several methods a table of them all. Prints all results so far on the same questions, the scores by
file, or the table. Started again after a kill it asks only what has no answer yet.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import rich
from absl import flags
from flax import nnx
from jax.sharding import Mesh

from sr1_jax import cli, cluster
from sr1_jax.agreement import check_same, once_a_file_system
from sr1_jax.data.sets import is_name, read_set
from sr1_jax.environment import settings as environment_settings
from sr1_jax.environment.tool import check_tools
from sr1_jax.evaluation import methods, results
from sr1_jax.evaluation.answer_set import QuestionFile, Subject, answer_set, join_examples
from sr1_jax.evaluation.finished import FinishedResults
from sr1_jax.evaluation.grid import Entry, grid_of, print_grid, write_grid
from sr1_jax.evaluation.options import Options
from sr1_jax.evaluation.progress import working
from sr1_jax.evaluation.scores import questions_sha256
from sr1_jax.evaluation.weights import params_fingerprint
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.paths import local_path, output_or_none, path_or_none
from sr1_jax.programs import kept_programs
from sr1_jax.retrieval import Retriever, fingerprint_of
from sr1_jax.retrieval.hooks import told_at_end
from sr1_jax.retrieval.open import check_retrieval, needs_corpus
from sr1_jax.rewards import Judge
from sr1_jax.sharding import make_mesh
from sr1_jax.terminal import one_line
from sr1_jax.training import task
from sr1_jax.training.checks import check_mesh, check_paths
from sr1_jax.training.policies import check_base, trained_policy
from sr1_jax.training.same_settings import as_json_values
from sr1_jax.training.saved_run import SavedRun, find_run, step_flag
from sr1_jax.training.settings import RUN, unknown_setting
from sr1_jax.workdirs import workdir_of_run


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the run.", **define)
    flags.DEFINE_string("questions", None, "Files, or sets by name (nq, hotpotqa:dev) that "
                        "data.folder holds, with commas.", **define)  # fmt: skip
    flags.DEFINE_string("corpus", "", "Passages, JSON lines; where none is given those of the "
                        "config.", **define)  # fmt: skip
    flags.DEFINE_string("method", "search", "How questions are answered; several with commas, of "
                        f"{', '.join(methods.METHODS)}.", **define)  # fmt: skip
    flags.DEFINE_integer("limit", 0, "First so many questions of a file; 0: all.", **define)
    flags.DEFINE_bool("base", False, "The policy that training starts from.", **define)
    flags.DEFINE_bool("greedy", True, "Greedy decoding instead of sampling.", **define)
    flags.DEFINE_integer("samples", 1, "Episodes a question, with --greedy=false.", **define)
    step_flag(values)
    flags.DEFINE_string("judge", "", "Address of an OpenAI-compatible API whose model judges "
                        "answers too.", **define)  # fmt: skip
    flags.DEFINE_string("judge_model", "", "Name of that model.", **define)
    flags.DEFINE_string("judge_key_variable", "", "Environment variable that holds the key of "
                        "that API.", **define)  # fmt: skip
    flags.DEFINE_string("results", "", "Also list the files of results in this one, as JSON, for "
                        "programs that read them.", **define)  # fmt: skip
    flags.DEFINE_string("examples", "", "Also write the correct episodes to this file, as examples "
                        "to imitate.", **define)  # fmt: skip
    cluster.define_flags(values)
    cli.parse(values, argv, required=("config", "workdir", "questions"), usage=__doc__)
    cluster.join_by_flags(values)
    with (
        workdir_of_run(values.workdir, "evaluate", writes=True) as workdir,
        output_or_none(values.examples, "--examples") as examples,
        output_or_none(values.results, "--results") as listed,
    ):
        options = Options(**{name: values[name].value for name in Options._fields})
        evaluate(
            values.config,
            workdir,
            _specs(values.questions),
            path_or_none(values.corpus, "--corpus"),
            options,
            listed=listed,
            examples=examples,
        )


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    questions: Sequence[str | Path],
    corpus: Path | None,
    options: Options,
    *,
    listed: Path | None = None,
    examples: Path | None = None,
) -> list[dict[str, Any]]:
    """Answers question files by one method or several; writes and returns the result of each method
    on each file.

    Several processes share the questions, and the first writes.

    Args:
        config: of the run.
        workdir: of the run; only data and eval below it are written.
        questions: files, and names of sets that are looked for in data.folder.
        corpus: passages; None stands for those of the config.
        options: see `Options`.
        listed: a file to list those of the results in, as JSON.
        examples: where options.examples is to be written, if that is not a path of this machine.

    Raises:
        ValueError, FileNotFoundError: bad settings or data, or there is no such policy; found
            before anything is written or loaded.
    """
    options.check()
    _check_settings(config, options.methods)
    files = _read_files(questions, config.data.folder, options.limit)
    searching = [m for m in options.methods if methods.needs_retriever(config, m)]
    has_corpus = corpus or config.data.corpus or config.data.index
    if searching and needs_corpus(config.retrieval) and not has_corpus:
        raise ValueError(f"--corpus is missing: {searching[0]} needs passages.")
    judge = _make_judge(options) if options.judge else None
    run = find_run(config, workdir, base=options.base, step=options.step)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_mesh(config, mesh, training=False)
    check_base(config, mesh)
    asked = {"options": options._asdict(), "questions (hashes)": [file.sha256 for file in files]}
    check_same("The evaluation", {"config": config.to_dict()} | asked)
    with kept_programs(config.compilation_cache, workdir):
        return _evaluate(
            config, workdir, files, corpus, options, run, searching, mesh, judge, listed,
            examples or path_or_none(options.examples, "--examples"),
        )  # fmt: skip


def _evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    files: Sequence[QuestionFile],
    corpus: Path | None,
    options: Options,
    run: SavedRun,
    searching: Sequence[str],
    mesh: Mesh,
    judge: Judge | None,
    listed: Path | None,
    examples: Path | None,
) -> list[dict[str, Any]]:
    """Does what `evaluate` says, once everything is checked.

    Args:
        files: the questions.
        run: whose policy answers.
        searching: those of the methods that search.
        mesh: that the policy runs on.
        judge: None: of none.
        config, workdir, corpus, options, listed, examples: as there.
    """
    retriever = _retriever(config, corpus, workdir / "data") if searching else None
    changes = _changes_of_all(config, options, run, retriever)
    with working("loading the policy"):
        policy, tokenizer, origin = trained_policy(
            config, workdir, mesh, base=options.base, step=run.step
        )
    retrievers = {m: retriever if m in searching else None for m in options.methods}
    settings = {m: _settings_of(config, options, m, retrievers[m]) for m in options.methods}
    subject = _subject(config, workdir, policy, tokenizer, origin, files, options, settings, judge)
    entries: dict[str, list[Entry]] = {}
    for method in options.methods:
        make_engine = functools.cache(
            functools.partial(
                methods.make_engine, policy, tokenizer, retrievers[method], config, method,
                greedy=options.greedy, mesh=mesh,
            )
        )  # fmt: skip
        entries[method] = [
            answer_set(subject, make_engine, method, file, settings[method], changes[method])
            for file in files
        ]
    if cluster.is_first():
        if examples is not None:
            names = [entry.name for row in entries.values() for entry in row]
            join_examples(examples, subject.folder, names)
        _summarise(subject.folder, entries, settings)
        if told := told_at_end(retriever):
            print(one_line(told))
        if listed is not None:
            names = [f"{entry.name}.json" for row in entries.values() for entry in row]
            listed.write_text(json.dumps([str(subject.folder / name) for name in names]) + "\n")
        subject.finished.delete()
    return [dict(entry.result) for row in entries.values() for entry in row]


def _subject(
    config: ml_collections.ConfigDict,
    workdir: Path,
    policy: Decoder,
    tokenizer: Tokenizer,
    origin: str,
    files: Sequence[QuestionFile],
    options: Options,
    settings: Mapping[str, Mapping[str, Any]],
    judge: Judge | None,
) -> Subject:
    """What is evaluated, and what of it an earlier start of the same evaluation has finished."""
    params, folder = nnx.state(policy), workdir / "eval"
    weights = params_fingerprint(params)
    facts = {
        "options": options._asdict(),
        "weights": weights,
        "settings": settings,
        "prompts": [methods.prompt_fingerprint(config, method) for method in options.methods],
        "questions": [[file.name, file.sha256] for file in files],
        "answers": [[q.golden_answers for q in file.questions] for file in files],
    }
    finished = FinishedResults(folder, facts)
    return Subject(config, options, folder, params, tokenizer, origin, weights, judge, finished)


def _check_settings(config: ml_collections.ConfigDict, names: Sequence[str]) -> None:
    RUN.check(config)
    check_paths(config)
    environment_settings.check_config(config.environment)
    check_retrieval(config.retrieval, config.rollout.passages)
    check_tools(config.environment.tools, config)
    for method in names:
        methods.check_templates(config, method)


def _make_judge(options: Options) -> Judge:
    """The judge that the options name.

    Raises:
        ValueError: the address is none, or the environment variable is not set.
    """
    try:
        return Judge(options.judge, options.judge_model, key_variable=options.judge_key_variable)
    except ValueError as error:
        raise ValueError(f"--judge={options.judge}: {error}") from error


def _specs(text: str) -> list[str | Path]:
    """The files and the names of sets that --questions has, with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        raise ValueError(f"--questions={text}: there is nothing before or after a comma.")
    return [part if is_name(part) else local_path(part, "--questions") for part in parts]


def _read_files(specs: Sequence[str | Path], folder: str, limit: int) -> list[QuestionFile]:
    """The questions of files, and of sets that are looked for in a folder."""
    files: dict[tuple[str, str], str | Path] = {}
    read = []
    for path in specs:
        questions = read_set(path, folder)
        questions = questions[:limit] if limit else questions
        name = str(path).replace(":", "_")
        if not is_name(path):
            name = re.sub(r"(\.jsonl?|\.parquet)?(\.gz)?$", "", Path(path).name)
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


def _settings_of(
    config: ml_collections.ConfigDict, options: Options, method: str, retriever: Retriever | None
) -> dict[str, Any]:
    """All settings that the answers of a method depend on, and what it searches."""
    plain = as_json_values(config.to_dict())
    fixed = RUN.without_free(plain)
    # A search server that moved, or more threads, change no answer.
    plain |= {section: fixed[section] for section in ("retrieval", "environment")}
    found = results.answering_settings(plain, method, greedy=options.greedy)
    return found | {"searched": _searched(retriever)}


def _changes_of_all(
    config: ml_collections.ConfigDict,
    options: Options,
    run: SavedRun,
    retriever: Retriever | None,
) -> dict[str, results.Changes | None]:
    """Of each method the settings that differ from those of the run, also printed; None if there is
    no run."""
    found = {}
    for method in options.methods:
        searched = retriever if methods.needs_retriever(config, method) else None
        found[method] = _changes(config, options, method, run, searched)
    every = {key: change for changes in found.values() for key, change in (changes or {}).items()}
    if every and cluster.is_first():
        cli.notice(f"These settings are not those of the run: {results.describe(every)}.")
    return found


def _changes(
    config: ml_collections.ConfigDict,
    options: Options,
    method: str,
    run: SavedRun,
    retriever: Retriever | None,
) -> results.Changes | None:
    if "config" not in run.facts:
        return None
    before = results.answering_settings(
        RUN.without_free(run.facts["config"]), method, greedy=options.greedy
    )
    # What a resumed run may change was not kept with the run.
    fixed = RUN.without_free(as_json_values(config.to_dict()))
    now = results.answering_settings(fixed, method, greedy=options.greedy)
    changes = dict(results.changed_settings(before, now))
    contents = run.facts.get("contents", {})
    here = {"data.corpus": _searched(retriever)}
    if run.facts["config"].get("method") == method:
        here["prompt"] = methods.prompt_fingerprint(config, method)
    for key, found in here.items():
        kept = contents.get(key, "")
        # A run that searched nothing kept nothing, and no corpus is that of the run then.
        if found and kept != found and (kept or key == "data.corpus"):
            changes[key] = (kept[:8], found[:8])
    return changes


def _summarise(
    folder: Path,
    entries: Mapping[str, Sequence[Entry]],
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """Prints the results; writes averages over several files, and the table of several results."""
    console = rich.get_console()
    every = [entry for row in entries.values() for entry in row]
    if len(every) == 1:
        sha256 = every[0].result["questions_sha256"]
        results.print_results(list(results.read_results(folder, sha256)), console)
        return
    grid = grid_of(entries)
    if len(grid.sets) > 1:
        for method, mean in grid.means.items():
            results.write_result(folder, results.result_name(mean, settings[method]), mean)
    write_grid(folder, grid)
    if len(entries) > 1:
        print_grid(grid, console)
    else:
        (mean,) = grid.means.values()
        results.print_files([entry.result for entry in every], mean, console)


if __name__ == "__main__":
    cli.run(main)

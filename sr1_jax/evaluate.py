"""Evaluates a policy on question files.

    python -m sr1_jax.evaluate --config=configs/smollm2_qa.py --workdir=runs/qa \
        --questions=dev_nq.jsonl --corpus=corpus.jsonl.gz --method=search [--limit=100]

Takes the policy of the newest checkpoint in the workdir if there is one, else the base policy of
the config. Results go to workdir/eval/<questions>.<method>.<policy>.json, greedy or sampled, with
every trajectory beside them; a table of all methods evaluated so far on these questions is printed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import rich
import rich.box
from absl import flags
from flax import nnx
from rich.table import Table

from sr1_jax import cli, cluster
from sr1_jax.agreement import check_same, once_a_file_system
from sr1_jax.data.questions import read_questions
from sr1_jax.evaluation.scores import score_of_those_run, standard_error
from sr1_jax.evaluation.trajectory_log import as_row, write_rows
from sr1_jax.paths import local_path
from sr1_jax.rollout import SplitEngine, Trajectory
from sr1_jax.rollout import settings as rollout_settings
from sr1_jax.rollout.engine import as_metrics
from sr1_jax.sharding import make_mesh
from sr1_jax.training.policies import check_base, trained_policy
from sr1_jax.training.settings import METHODS, check_mesh, check_paths, rollout_config
from sr1_jax.training.task import open_index

_COLUMNS = ("em", "f1", "substring", "searches", "response_tokens", "well_formed", "truncated")


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values)
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the run.", **define)
    flags.DEFINE_string("questions", None, "Questions, JSON lines.", **define)
    flags.DEFINE_string("corpus", "", "Passages, JSON lines; not needed by direct.", **define)
    flags.DEFINE_enum("method", "search", METHODS, "How questions are answered.", **define)
    flags.DEFINE_integer("limit", 0, "First so many questions; 0: all.", **define)
    flags.DEFINE_bool("base", False, "The base policy, whatever was trained since.", **define)
    flags.DEFINE_bool("greedy", True, "Greedy decoding instead of sampling.", **define)
    cluster.define_flags(values)
    cli.parse(values, argv, required=("config", "workdir", "questions"), usage=__doc__)
    cluster.join_by_flags(values)
    evaluate(
        values.config,
        local_path(values.workdir, "--workdir"),
        local_path(values.questions, "--questions"),
        local_path(values.corpus, "--corpus") if values.corpus else None,
        values.method,
        limit=values.limit,
        base=values.base,
        greedy=values.greedy,
    )


def evaluate(
    config,
    workdir: Path,
    questions_path: Path,
    corpus: Path | None,
    method: str,
    *,
    limit: int = 0,
    base: bool = False,
    greedy: bool = True,
) -> dict:
    """Runs a method over a question file; returns and writes its scores.

    Several processes share the questions, and the first writes.

    Raises:
        ValueError, FileNotFoundError: bad settings or data, found before the model is loaded.
    """
    check_paths(config)
    rollout = rollout_config(config, method, greedy=greedy)
    rollout_settings.check_config(rollout)
    questions = read_questions(questions_path)
    questions = questions[:limit] if limit else questions
    if corpus is None and method != "direct":
        raise ValueError(f"--corpus is missing: {method} needs passages.")
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_mesh(config, mesh, training=False)
    check_base(config, mesh)
    asked = hashlib.sha256(repr([(q.id, q.question) for q in questions]).encode()).hexdigest()
    flags_of = {"method": method, "base": base, "greedy": greedy, "questions (hash)": asked}
    check_same("The evaluation", {"config": config.to_dict()} | flags_of)
    retriever, data = None, workdir / "data"
    if corpus is not None:
        retriever = once_a_file_system(data, lambda: open_index(config, corpus, data))
        check_same(str(corpus), retriever.manifest["corpus_sha256"])
    policy, tokenizer, origin = trained_policy(config, workdir, mesh, base=base)
    engine = SplitEngine(policy, tokenizer, retriever, rollout, mesh=mesh)
    began = time.perf_counter()
    trajectories = engine.run(questions, seed=config.seed + 1, params=nnx.state(policy))
    result = {
        "questions": questions_path.name,
        "count": len(trajectories),
        "method": method,
        "policy": origin,
        "greedy": greedy,
        "seconds": time.perf_counter() - began,
        **score_of_those_run(trajectories, questions),
        **as_metrics(engine.stats),
    }
    result["em_standard_error"] = standard_error(result["em"], len(trajectories))
    if cluster.is_first():
        write_result(workdir / "eval", questions_path.stem, result, trajectories, tokenizer)
    return result


def write_result(
    folder: Path, stem: str, result: dict, trajectories: Sequence[Trajectory], tokenizer: Tokenizer
) -> None:
    """Writes scores and trajectories of an evaluation, and prints all on these questions."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{stem}.{result['method']}.{result['policy'].replace(' ', '_')}"
    write_rows(folder / f"{name}.trajectories.jsonl", [as_row(t, tokenizer) for t in trajectories])
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print_table(folder, stem)


def print_table(folder: Path, stem: str) -> None:
    """Prints all results on one question file."""
    table = Table(title=f"Results on {stem}", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "policy", "n", *_COLUMNS):
        table.add_column(
            column.replace("_", " "),
            justify="left" if column == "method" else "right",
            # On a narrow terminal headings give way, what stands below them does not.
            min_width=7 if column == "policy" else 5,
            overflow="fold",
        )
    for path in sorted(folder.glob(f"{stem}.*.json")):
        row = json.loads(path.read_text())
        cells = [f"{row[column]:.3f}" for column in _COLUMNS]
        table.add_row(row["method"], row["policy"], str(row["count"]), *cells)
    rich.print(table)


if __name__ == "__main__":
    cli.run(main)

"""Trains a policy to search.

    python -m sr1_jax.train --config=configs/demo.py --workdir=runs/demo [--config.key=value …]

Reads top to bottom: settings, mesh, data, base policy (pretrained, from another run, or by a
supervised warm start), reinforcement learning, final evaluation. Started again with the same
workdir, it goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import rich
from absl import flags
from flax import nnx
from jax.sharding import Mesh

from sr1_jax import cli, cluster
from sr1_jax.abstract import without_arrays
from sr1_jax.agreement import check_same, lead_on_file_system
from sr1_jax.cluster import is_first
from sr1_jax.evaluation.evaluator import Evaluator
from sr1_jax.evaluation.summary import draw_curves, print_summary
from sr1_jax.evaluation.trajectory_log import as_row, print_trajectories, write_rows
from sr1_jax.models import Decoder, Tokenizer
from sr1_jax.paths import local_path
from sr1_jax.sharding import make_mesh
from sr1_jax.training.checkpoints import save_base
from sr1_jax.training.loop import make_learner, reinforce
from sr1_jax.training.policies import SUPERVISED, check_base, fine_tuned_policy, starting_policy
from sr1_jax.training.same_settings import as_json_values, check_same_settings
from sr1_jax.training.settings import check_config, check_mesh
from sr1_jax.training.task import Task, prepare_task
from sr1_jax.world.warm_start import WarmStart, scratch_model

_SHOWN_TRAJECTORIES = 10
_FACTS = "warm_start.json"


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    cluster.define_flags(values)
    cli.parse(values, argv, required=("config", "workdir"), usage=__doc__)
    cluster.join_by_flags(values)
    train(values.config, local_path(values.workdir, "--workdir"))


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs everything `config` asks for; returns what goes to `workdir`/result.json.

    Of several processes all call it with the same config; only the first prints and, but for
    data, base policy and checkpoints, writes.

    Raises:
        ValueError, FileNotFoundError: bad settings or data, found before anything expensive.
        FloatingPointError: training diverged.
    """
    began = time.perf_counter()
    check_config(config)
    check_same("The config", config.to_dict())
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_mesh(config, mesh)
    check_base(config, mesh)  # before the index of a corpus is built
    source = Path(config.base.workdir) if config.base.workdir else workdir
    task = prepare_task(config, source)
    policy, tokenizer, result = base_policy(config, task, source, mesh)
    workdir.mkdir(parents=True, exist_ok=True)
    # From here on `params` alone holds the arrays, so that they are freed when it lets go of them.
    params, policy = nnx.state(policy), without_arrays(policy)

    def evaluator_of(retriever) -> Evaluator:
        return Evaluator(policy, tokenizer, retriever, config, config.method, mesh=mesh)

    evaluator = evaluator_of(task.retriever)
    name, dev = next(iter(task.dev.items()), ("", []))
    dev = dev[: config.evaluation.final_questions]
    result |= {"method": config.method, "dev": name, "dev_questions": len(dev)}
    if dev:
        result["before"], shown = evaluator.run(params, dev)
    if config.warm_start.phases and config.base.workdir:
        # Supervised fine-tuning from another run's base: the SFT baseline.
        model = nnx.merge(nnx.graphdef(policy), params)
        del params
        params, result["supervised"] = supervised_policy(
            config, workdir, tokenizer, mesh, model,
            lambda model: WarmStart(config, task).train(model, tokenizer, mesh, evaluator, dev),
        )  # fmt: skip
        del model
    result["seconds_before_rl"] = time.perf_counter() - began
    if config.steps:
        model = nnx.merge(nnx.graphdef(policy), params)
        learner = make_learner(config, model, tokenizer, mesh)
        del model, params  # the learner has copies
        params = reinforce(config, workdir, task, learner, policy, tokenizer, mesh, evaluator)
        if is_first():
            draw_curves(workdir)
    result["seconds_rl"] = time.perf_counter() - began - result["seconds_before_rl"]
    if dev:
        result["after"], shown = evaluator.run(params, dev)
        result["dev_questions"] = len(shown)  # those that fit
        if task.changed:
            retriever, questions = task.changed
            questions = questions[: config.evaluation.final_questions]
            result["after_facts_changed"], _ = evaluator_of(retriever).run(params, questions)
        if is_first():
            write_rows(workdir / "dev_trajectories.jsonl", [as_row(t, tokenizer) for t in shown])
        print_trajectories(shown[:_SHOWN_TRAJECTORIES], tokenizer, rich.get_console())
    result["seconds"] = time.perf_counter() - began
    if is_first():
        (workdir / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print_summary(result, rich.get_console())
    return result


def base_policy(
    config: ml_collections.ConfigDict, task: Task, source: Path, mesh: Mesh
) -> tuple[Decoder, Tokenizer, dict[str, Any]]:
    """The policy that reinforcement learning starts from, its tokenizer, and how it came about.

    A pretrained model is loaded; the base policy of a finished warm start is read back; else the
    warm start is run and its result written below `source`/base.
    """
    folder = source / "base"
    check_same(str(folder), {"holds a base policy": (folder / "model.json").is_file()})
    if config.base.path or config.base.workdir or (folder / "model.json").is_file():
        facts = _read_facts(folder, {} if config.base.workdir else _settings_of(config))
        policy, tokenizer = starting_policy(config, source, mesh)
        return policy, tokenizer, facts
    warm_start = WarmStart(config, task)
    tokenizer = warm_start.tokenizer()
    policy = scratch_model(config, tokenizer)
    evaluator = Evaluator(policy, tokenizer, task.retriever, config, "search", mesh=mesh)
    dev = task.dev["heldout"][: config.evaluation.questions]
    params, checkpoints = warm_start.train(policy, tokenizer, mesh, evaluator, dev)
    facts = {"warm_start": checkpoints, "scripted_ceiling": warm_start.ceiling()}
    _save(folder, facts, config, policy, params, tokenizer)
    return nnx.merge(nnx.graphdef(policy), params), tokenizer, facts


def supervised_policy(
    config: ml_collections.ConfigDict,
    workdir: Path,
    tokenizer: Tokenizer,
    mesh: Mesh,
    model: Decoder,
    fit: Callable[[Decoder], tuple[nnx.State, list[dict[str, Any]]]],
) -> tuple[nnx.State, list[dict[str, Any]]]:
    """What `fit` makes of another run's base policy, and the scores on the way; read back if it is
    there."""
    folder = workdir / SUPERVISED
    if found := fine_tuned_policy(config, workdir, mesh):
        return nnx.state(found[0]), _read_facts(folder, _settings_of(config))["supervised"]
    params, checkpoints = fit(model)
    _save(folder, {"supervised": checkpoints}, config, model, params, tokenizer)
    return params, checkpoints


def _save(
    folder: Path,
    facts: dict[str, Any],
    config: ml_collections.ConfigDict,
    policy: Decoder,
    params: nnx.State,
    tokenizer: Tokenizer,
) -> None:
    """Writes a policy, and how it came about; the policy last."""
    folder.mkdir(parents=True, exist_ok=True)
    if lead_on_file_system(folder) == jax.process_index():
        written = json.dumps(facts | {"settings": _settings_of(config)}, indent=1)
        (folder / _FACTS).write_text(written + "\n")
    save_base(folder, policy.config, params, tokenizer)


def _settings_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a supervised policy follows from, but for the data."""
    plain = as_json_values(config.to_dict())
    return {key: plain[key] for key in ("seed", "model", "warm_start")}


def _read_facts(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """How the policy in a folder came about.

    Raises:
        ValueError: by other settings than these.
    """
    if not (folder / _FACTS).is_file():
        return {}
    facts = json.loads((folder / _FACTS).read_text())
    saved = facts.pop("settings", settings)
    if settings:
        check_same_settings(saved, settings, what=f"{folder.name}/")
    return facts


if __name__ == "__main__":
    cli.run(main)

"""The policy that a run starts from: loaded, read back, or made by a supervised start and kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.abstract import without_arrays
from sr1_jax.agreement import check_same, lead_on_file_system
from sr1_jax.evaluation.progress import working
from sr1_jax.models import Decoder, Tokenizer
from sr1_jax.models.lora import merged_model
from sr1_jax.models.peft_folder import save_adapters
from sr1_jax.storage.workdir import push_now
from sr1_jax.training.development import Development
from sr1_jax.training.examples import examples_sha256
from sr1_jax.training.policies import (
    ADAPTER,
    SUPERVISED,
    fine_tuned_policy,
    starting_policy,
    was_fine_tuned,
    with_adapters,
)
from sr1_jax.training.same_settings import as_json_values, check_same_settings
from sr1_jax.training.saved_base import save_base
from sr1_jax.training.settings import RUN, has_adapters
from sr1_jax.training.task import Task
from sr1_jax.training.warm_start import forget_progress, scratch_model, train_supervised

_FACTS = "warm_start.json"
# Below the workdir, while supervised training is under way.
_PROGRESS = "supervised_checkpoints"


@dataclasses.dataclass
class Policy:
    """A policy while a run works on it. It alone holds the arrays, so that they are freed when it
    lets go of them.

    Attributes:
        shape: the model with shapes for parameters.
        params: its parameters; None once they were handed over.
        tokenizer: that it reads and writes with.
        origin: how it came about, for the result of the run.
    """

    shape: Decoder
    params: nnx.State | None
    tokenizer: Tokenizer
    origin: dict[str, Any]

    @classmethod
    def of(cls, model: Decoder, tokenizer: Tokenizer, origin: dict[str, Any]) -> Policy:
        """The policy of a model, which the caller should then forget."""
        return cls(without_arrays(model), nnx.state(model), tokenizer, origin)

    def before_training(self, config: ml_collections.ConfigDict, mesh: Mesh) -> nnx.State:
        """Parameters of the plain model that training starts from: with lora.path those adapters
        are added to kernels of its own."""
        if not config.lora.path:
            return self.params
        model = nnx.merge(nnx.graphdef(self.shape), self.params)
        return nnx.state(merged_model(with_adapters(config, model, mesh)))

    def hand_over(self) -> Decoder:
        """The model with its parameters, of which nothing stays here."""
        params, self.params = self.params, None
        return nnx.merge(nnx.graphdef(self.shape), params)


def base_policy(config: ml_collections.ConfigDict, task: Task, source: Path, mesh: Mesh) -> Policy:
    """The policy before reinforcement learning.

    A pretrained model is loaded; the base policy of a finished supervised start is read back; else
    the supervised start is run and its result written below `source`/base.

    Raises:
        ValueError: there is none, and the task has no examples to make one from; or there is one
            made with other settings.
    """
    folder = source / "base"
    there = (folder / "model.json").is_file()
    check_same(str(folder), {"holds a base policy": there})
    if config.base.path or config.base.workdir or there:
        origin = _read_facts(folder, {} if config.base.workdir else _settings_of(config))
        with working("loading the policy"):
            return Policy.of(*starting_policy(config, source, mesh), origin)
    if task.supervised is None:
        raise ValueError(
            "There is no policy to start from: set base.path, or base.workdir. Only a task with "
            "examples to imitate, such as the fictional world (data.world_people), makes its own."
        )
    tokenizer = task.supervised.tokenizer()
    model = scratch_model(config, tokenizer)
    development = Development(config, task, model, tokenizer, mesh, method="search")
    trained, scores = train_supervised(
        config, task, model, tokenizer, mesh, development.while_training,
        folder=folder.with_name(_PROGRESS), facts=_settings_of(config),
    )  # fmt: skip
    origin = {"warm_start": scores, "scripted_ceiling": task.supervised.ceiling()}
    policy = Policy.of(trained, tokenizer, origin)
    _save(folder, origin | {"settings": _settings_of(config)}, config, policy)
    forget_progress(folder.with_name(_PROGRESS))
    return policy


def fine_tune(
    config: ml_collections.ConfigDict,
    workdir: Path,
    task: Task,
    policy: Policy,
    mesh: Mesh,
    development: Development,
    weights: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Supervised fine-tuning of a policy that is there: of another run's, or a pretrained one.

    `policy` has the new parameters then; where they are found below `workdir`, they are read back.
    With lora.rank or lora.path only adapters train, and are written as a folder of peft, which
    lora.path of another run takes.

    Args:
        config: of the run.
        workdir: of the run.
        task: has the examples.
        policy: that is trained.
        mesh: that it is trained on.
        development: what scores it along the way.
        weights: fingerprints of those that it starts from (`resume.weights_contents`).

    Returns:
        The scores along the way.

    Raises:
        ValueError: what is found was made with other settings or from other weights, or several
            processes would train adapters; or as `train_supervised`.
    """
    folder = workdir / SUPERVISED
    if has_adapters(config) and jax.process_count() > 1:
        raise ValueError("Supervised training of adapters runs in one process; set lora.rank=0.")
    settings = _settings_of(config) | {"weights": dict(weights)}
    # Before anything is loaded onto a base that it was not made from.
    facts = _read_facts(folder, settings) if was_fine_tuned(workdir) else {}
    if found := fine_tuned_policy(config, workdir, mesh):
        policy.params = nnx.state(found[0])
        return facts["supervised"]
    trained, scores = train_supervised(
        config,
        task,
        with_adapters(config, policy.hand_over(), mesh),
        policy.tokenizer,
        mesh,
        development.final_scores if development.count else None,
        folder=workdir / _PROGRESS,
        facts=settings,
    )
    adapted = trained if has_adapters(config) else None
    policy.params = nnx.state(trained if adapted is None else merged_model(trained))
    _save(folder, {"supervised": scores, "settings": settings}, config, policy, adapted)
    forget_progress(workdir / _PROGRESS)
    return scores


def _save(
    folder: Path,
    facts: dict[str, Any],
    config: ml_collections.ConfigDict,
    policy: Policy,
    adapted: Decoder | None = None,
) -> None:
    """Writes a policy, or of one with adapters these alone, and how it came about; the policy
    last."""
    folder.mkdir(parents=True, exist_ok=True)
    if lead_on_file_system(folder) == jax.process_index():
        (folder / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    if adapted is not None:
        save_adapters(adapted, folder / ADAPTER, base=config.base.path)
    else:
        save_base(folder, policy.shape.config, policy.params, policy.tokenizer)
    push_now(folder.parent)


def _settings_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a supervised policy follows from, but for the data."""
    plain = RUN.without_free(as_json_values(config.to_dict()))
    keys = ("seed", "model", "warm_start", *(("lora",) if has_adapters(config) else ()))
    settings = {key: plain[key] for key in keys}
    if found := examples_sha256(config):
        settings["warm_start"] |= {"files of examples": found}
    return settings


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

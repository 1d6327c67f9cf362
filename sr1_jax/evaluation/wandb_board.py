"""Metrics of a run on Weights & Biases (https://wandb.ai), where log.wandb names a project."""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sr1_jax.paths import write_whole


def check_wandb(project: str) -> None:
    """Refuses a project where the package is missing.

    Raises:
        ValueError: naming the setting and what to install.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"log.wandb={project!r} needs the package wandb: pip install 'sr1_jax[wandb]', or set "
            "log.wandb=''."
        )


# In the workdir.
_IDENTITY = "wandb_run_id"


class WandbBoard:
    """A run of a project; taken up again, it goes on as the same one.

    Key, entity and whether anything is sent are those of the environment (WANDB_API_KEY,
    WANDB_ENTITY, WANDB_MODE).

    Args:
        project: its name.
        workdir: of the run; a file in it has the name by which it is known there, wherever the
            folder is opened next.
        config: of the run, plain values.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        identity = workdir / _IDENTITY
        if not identity.is_file():
            write_whole(identity, uuid.uuid4().hex[:16])
        self._run = importlib.import_module("wandb").init(
            project=project,
            id=identity.read_text(),
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
            resume="allow",
        )
        # Its own count of steps only rises, and a run that goes back draws steps again.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the scalars of a step."""
        self._run.log({"step": step} | dict(values))

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()

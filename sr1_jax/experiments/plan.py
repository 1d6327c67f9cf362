"""What an experiment consists of: runs of a few rows for each seed, and how each row is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from sr1_jax.data.sets import question_files
from sr1_jax.experiments.derived import Overrides, derived_file
from sr1_jax.experiments.stages import Stage
from sr1_jax.paths import local_path
from sr1_jax.training.task import index_name

# The run of each seed that makes data, index and the policy that the others start from.
BASE = "base"


class Row(NamedTuple):
    """A row of an experiment's table.

    Attributes:
        label: as people call it.
        method: how its policy answers.
        run: name of the run that has its policy.
        of_base: whether the policy that this run started from is meant.
    """

    label: str
    method: str
    run: str
    of_base: bool = False


def check_overrides(overrides: Overrides, keys: Sequence[str] = ("seed",)) -> None:
    """Refuses changes of settings that an experiment decides itself.

    Raises:
        ValueError: naming the key.
    """
    for key, value in overrides:
        if key in keys:
            other = "--seeds" if key == "seed" else "--rows"
            raise ValueError(f"{key}={value}: an experiment sets {key} itself; see {other}.")


def files_asked(
    config: ml_collections.ConfigDict, folder: Path, seeds: Sequence[int], questions: Sequence[str]
) -> tuple[dict[int, Sequence[str]], dict[int, str] | None]:
    """What every row of an experiment answers, and what it searches where settings do not say.

    Args:
        config: of the experiment.
        folder: of the experiment.
        seeds: of the experiment.
        questions: files and sets; without any those that the config develops on.

    Returns:
        Files of questions, and the corpus, by seed.

    Raises:
        ValueError: there are no questions.
        FileNotFoundError: a file is not there, found before anything is trained.
    """
    corpora = world_files(folder, seeds, "corpus") if config.data.world_people else None
    if corpora and not questions:
        heldout = world_files(folder, seeds, "heldout")
        return {seed: [path] for seed, path in heldout.items()}, corpora
    specs = questions or [part for part in config.data.dev.split(",") if part]
    if not specs:
        raise ValueError("There are no questions to answer: give --questions, or data.dev.")
    for spec in dict.fromkeys(specs):
        for file in question_files(spec, config.data.folder):
            if not Path(file.path).is_file():
                raise FileNotFoundError(f"{file.path}: no such file of questions.")
    return dict.fromkeys(seeds, specs), corpora


class Plan:
    """The stages of an experiment, and the rows that they fill.

    Runs of one name, settings and seed are the same stage in every plan: a table and a sweep in one
    folder share them.

    Args:
        folder: of the experiment, absolute.
        seeds: each has all rows.
        questions: by seed, the files that every row answers.
        limit: of each file; 0: all.
        corpora: by seed, the file that is searched, where the settings do not name one.

    Attributes:
        stages: in the order they are to be run in.
        rows: by their key, in the order of the table.
        reference: key of the row that the others are compared with.
        limit: of each file; 0: all.
    """

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        questions: Mapping[int, Sequence[str]],
        *,
        reference: str,
        limit: int = 0,
        corpora: Mapping[int, str] | None = None,
    ):
        self.folder, self.seeds, self.questions = folder, tuple(seeds), questions
        self.reference, self.limit = reference, limit
        self._corpora = corpora or {}
        self.stages: list[Stage] = []
        self.rows: dict[str, Row] = {}

    def workdir(self, seed: int, run: str) -> Path:
        """Of a run."""
        return self.folder / f"seed_{seed}" / run

    def train(
        self, seed: int, run: str, config: str, overrides: Overrides, values: Mapping[str, Any]
    ) -> None:
        """Adds the training of a run; see `derived_config` for its settings."""
        self.add(seed, f"{run}_train", "train", run, config, overrides, values)

    def train_base(
        self, seed: int, config: ml_collections.ConfigDict, file: str, overrides: Overrides
    ) -> dict[str, Any]:
        """Adds the run that makes data, index and the policy that the others of its seed start
        from; returns what it changes of the settings."""
        values: dict[str, Any] = {"method": "search", "steps": 0}
        if config.base.workdir:
            values["base.workdir"] = ""
        self.train(seed, BASE, file, overrides, values)
        return values

    def evaluate(
        self,
        seed: int,
        name: str,
        run: str,
        config: str,
        overrides: Overrides,
        values: Mapping[str, Any],
        methods: Sequence[str],
        *flags: str,
    ) -> None:
        """Adds the evaluation of a run's policy by some methods."""
        self.add(
            seed, f"{name}_evaluate", "evaluate", run, config, overrides, values, *flags,
            f"--results={self.results_list(seed, run)}",
            f"--method={','.join(methods)}",
            f"--questions={','.join(self.questions[seed])}",
            f"--limit={self.limit}",
            *self.corpus_flag(seed),
        )  # fmt: skip

    def results_list(self, seed: int, run: str) -> Path:
        """The file in which an evaluation of a run lists its results."""
        return self.workdir(seed, run) / "results_of_experiment.json"

    def corpus_flag(self, seed: int) -> list[str]:
        """The flag that names what is searched; none where the settings do."""
        return [f"--corpus={self._corpora[seed]}"] if seed in self._corpora else []

    def add(
        self,
        seed: int,
        name: str,
        module: str,
        run: str,
        config: str,
        overrides: Overrides,
        values: Mapping[str, Any],
        *flags: str,
    ) -> None:
        """Adds a stage in the workdir of a run."""
        text = derived_file(
            f"{run}, seed {seed}.", config, overrides, {"seed": seed} | dict(values)
        )
        workdir = f"--workdir={self.workdir(seed, run)}"
        group = f"seed_{seed}"
        self.stages.append(Stage(f"{group}_{name}", module, (workdir, *flags), text, group))


def from_base(config: ml_collections.ConfigDict, base: Path, index: str = "") -> dict[str, Any]:
    """Settings by which a run takes the policy and the data of another, the base of its seed.

    Args:
        config: of the experiment.
        base: workdir of that run.
        index: name of the index that it built below its data, for pretrained policies, whose runs
            have data of their own.
    """
    values: dict[str, Any] = {"warm_start.phases": ()}
    if not config.base.path:
        return values | {"base.workdir": str(base)}
    return values | ({"data.index": str(base / "data" / index)} if index else {})


def index_of(config: ml_collections.ConfigDict) -> str:
    """Name of the index that a run of a pretrained policy would build; "" where it builds none."""
    data = config.data
    if not config.base.path or data.index or not data.corpus:
        return ""
    return index_name(config, local_path(data.corpus, "data.corpus"))


def check_untuned(config: ml_collections.ConfigDict) -> None:
    """Refuses settings by which runs would not start from the policy that their base trained.

    Raises:
        ValueError: a pretrained policy has a supervised start.
    """
    if config.base.path and config.warm_start.phases:
        raise ValueError(
            "warm_start.phases would tune base.path, and the runs of an experiment start from it "
            "as it is: train and export it first, or of adapters give lora.path, and clear the "
            "phases."
        )


def world_files(plan_folder: Path, seeds: Sequence[int], name: str) -> dict[int, str]:
    """The files of a name that a fictional world writes below the base of each seed: train,
    heldout, corpus."""
    return {
        seed: str(plan_folder / f"seed_{seed}" / BASE / "data" / f"{name}.jsonl") for seed in seeds
    }

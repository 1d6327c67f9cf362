"""Checkpoints by Orbax, of a run while it trains."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sr1_jax.agreement import from_first, gather, lead_on_file_system, wait_for_all
from sr1_jax.storage import is_bucket, objects
from sr1_jax.storage.places import file_system_of
from sr1_jax.storage.workdir import place_of
from sr1_jax.terminal import one_line
from sr1_jax.training.checksums import ITEM, SaveChecksums, damages, told_of

# What ends a run in all processes at the same step.
AGREED = (FloatingPointError, InterruptedError)
# What is told of a checkpoint: whether a run may go back to it, and its development score.
_GOOD, _SCORE = "good", "score"


# What Orbax writes into a checkpoint last, where names cannot be given at once.
_COMMITTED = "commit_success.txt"
_LONGEST_REASON = 500


# What goes wrong in the background is raised by us, in one line.
logging.getLogger("absl").addFilter(
    lambda record: record.filename not in ("async_checkpointer.py", "checkpoint_manager.py")
)


class CheckpointFailed(OSError):
    """A checkpoint could not be written; those before it stay."""


def checkpoint_folder(config: ml_collections.ConfigDict, workdir: Path) -> Path | epath.Path:
    """Where the checkpoints of a run are: on a disk, or in a bucket."""
    if config.checkpoint.folder:
        return place_of(config.checkpoint.folder)
    return place_of(workdir) / "checkpoints"


def absolute(path: Path | epath.Path) -> Path | epath.Path:
    """As Orbax takes it; an address is absolute."""
    return path if is_bucket(path) else Path(path).resolve()


def _atomicity(folder: Path | epath.Path) -> dict[str, Any]:
    """Options that say how a checkpoint is committed: by its name, or by a mark, where names cannot
    be given at once.

    In a bucket Orbax does the latter by itself; one that is mounted it takes for a disk, where
    giving a folder its name copies file by file.
    """
    if is_bucket(folder) or not file_system_of(folder).startswith("fuse"):
        return {}
    mode = ocp.options.AtomicityMode.COMMIT_FILE
    return {"atomicity_options": ocp.options.AtomicityOptions(mode=mode)}


def abstract_like(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree: what a restore needs to know."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class RunCheckpoints:
    """Checkpoints of a training run below one folder, written whole or not at all.

    Several processes write each its shards; what is read back may be split over other processes
    and another mesh. Each has checksums: one that is damaged is named on the screen and set aside,
    so that the newest one that is not is taken up. As a context manager it waits at the end for
    what is being written.

    Args:
        folder: made if need be; all processes have to share it.
        keep: how many of the newest to keep. The newest good one is kept besides, and the one with
            the best score.
        reading: nothing is written, and damaged ones are passed over.
        before_save: called by the first process before anything of a checkpoint is written.
        before_commit: called in the background, by the first process, before a checkpoint is
            committed.

    Raises:
        ValueError: processes see different file systems in `folder`, or the account may not do
            what checkpoints in a bucket need.
        ConnectionError: processes see different checkpoints, as where a service fails for one.
    """

    def __init__(
        self,
        folder: Path | epath.Path,
        keep: int,
        *,
        reading: bool = False,
        before_save: Callable[[], None] = lambda: None,
        before_commit: Callable[[], None] = lambda: None,
    ):
        if is_bucket(folder):
            objects.prepare()
            objects.check_may_ask(str(folder), "checkpoint.folder")
        else:
            check_shared(folder)
        self.folder, self._reading = folder, reading
        self._before_save, self._before_commit = before_save, before_commit
        self._sound: set[int] = set()  # compared with their checksums, as a whole
        self._left_out: set[int] = set()
        self._place = absolute(folder)
        self._atomicity = _atomicity(self._place)
        self._drop_damaged()
        options = ocp.CheckpointManagerOptions(
            create=not reading,
            read_only=reading,
            lightweight_initialize=reading,
            **self._atomicity,
            preservation_policy=Kept(keep),
            best_fn=lambda told: told.get(_SCORE, -math.inf),  # else what is told is not written
            # In the background it takes minutes to tell of a disk where none can be made; and where
            # processes are several, one may be told too late that it has to wait, and what it has
            # written is removed when the first makes the folder.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(self._place, options=options)
        seen = gather(self.steps)
        if any(steps != seen[0] for steps in seen):
            raise ConnectionError(
                f"Processes see different checkpoints in {folder}: {', '.join(map(str, seen))}. "
                "Start again when the storage shows all of them the same."
            )
        # What was told of each, by step; what is being written cannot be read yet.
        self._told = {step: told_of(self._place / str(step), "metrics") for step in self.steps}

    @property
    def latest_step(self) -> int | None:
        """Steps done when the newest checkpoint was written; None without one."""
        return max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """After which steps there are checkpoints, rising."""
        return sorted(set(self._manager.all_steps()) - self._left_out)

    @property
    def last_good(self) -> int | None:
        """The newest checkpoint that a run may go back to; None without one. All processes have to
        ask together."""
        while (step := _last_good(self._told)) is not None and not self._is_sound(step):
            del self._told[step]
        return step

    @property
    def best_step(self) -> int | None:
        """The checkpoint with the best score, the first of equal ones; None where none has one."""
        return _best(self._told)

    def is_best(self, score: float | None) -> bool:
        """Whether a policy with this score would be better than all that have been kept."""
        best = self.best_step
        return score is not None and (best is None or score > self._told[best][_SCORE])

    def save(
        self,
        step: int,
        state: Any,
        facts: dict[str, Any],
        *,
        score: float | None = None,
        good: bool = True,
    ) -> None:
        """Saves `state` after `step` steps, with JSON-able `facts` beside it.

        Args:
            step: steps done.
            state: tree of arrays.
            facts: see `facts`.
            score: of development questions, the higher the better, where they were asked.
            good: whether a run may go back to it.
        """
        told = {_GOOD: int(good)} | ({} if score is None else {_SCORE: score})
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            facts=ocp.args.JsonSave(facts),
            **{ITEM: SaveChecksums(self._before_commit)},
        )
        if jax.process_index() == 0:
            self._before_save()
        with self._failing(f"The checkpoint after step {step}, or the one before it,"):
            saved = self._manager.save(step, args=args, metrics=told)
        if saved:
            self._told[step] = told
            left = set(self.steps)
            self._told = {step: told for step, told in self._told.items() if step in left}

    def check(self) -> None:
        """Raises what went wrong in the background since the last call.

        Raises:
            CheckpointFailed: a checkpoint was not written.
        """
        with self._failing("The newest checkpoint"):
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Says in one line what could not be written, and what stays."""
        try:
            yield
        except AGREED:
            raise
        except Exception as error:
            reason = one_line(str(error)).strip() or type(error).__name__
            raise CheckpointFailed(
                f"{what} could not be written to {self.folder}: {reason[:_LONGEST_REASON]}. Those "
                "before it stay. Start again with the same --workdir when that is mended."
            ) from error

    def _drop_damaged(self) -> None:
        """Sets aside, or leaves out, what is damaged: all of it of the newest checkpoint, and
        where that is damaged of the next, as far as it shows at a glance of the others."""
        names = ocp.path.step.standard_name_format(**self._atomicity)
        names = names.find_all(self._place)
        steps = sorted((found.step for found in names), reverse=True)
        newest = True
        for step in from_first(steps):
            newest = not self._is_sound(step, whole=newest) and newest

    def _is_sound(self, step: int, *, whole: bool = True) -> bool:
        """Whether a checkpoint is as it was written; if not, says so and sets it aside. Processes
        share what has to be read."""
        if step in self._sound:
            return True
        if hasattr(self, "_manager"):
            self._wait()
        folder, number, count = self._place / str(step), jax.process_index(), jax.process_count()
        found = gather(damages(folder, whole=whole, part=number, parts=count))
        found = sorted({damage for mine in found for damage in mine})
        if not found:
            self._sound |= {step} if whole else set()
            return True
        what = f"{self.folder / str(step)} is damaged: {found[0]}"
        what += f", and {len(found) - 1} more" if len(found) > 1 else ""
        if self._reading:
            self._left_out.add(step)
            done = "It is left out."
        else:
            done = self._set_aside(step)
        if number == 0:
            print(one_line(f"{what}. {done}"), file=sys.stderr, flush=True)
        return False

    def _set_aside(self, step: int) -> str:
        """Lets a checkpoint be none any more, and says what became of it."""
        folder, aside = self._place / str(step), f"{step}.damaged"
        if jax.process_index() == 0:
            if is_bucket(folder):
                (folder / _COMMITTED).unlink(missing_ok=True)
            else:
                numbers = itertools.count(2)
                while (self._place / aside).exists():
                    aside = f"{step}.damaged-{next(numbers)}"
                folder.rename(self._place / aside)
        wait_for_all()
        if hasattr(self, "_manager"):
            self._manager.reload()
        return "It counts as unfinished." if is_bucket(folder) else f"It is called {aside} now."

    def _wait(self) -> None:
        """Returns when nothing is being written any more."""
        with self._failing("The newest checkpoint"):
            self._manager.wait_until_finished()

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints after that of `step`, which will come again."""
        self._wait()
        for later in [later for later in self.steps if later > step]:
            self._manager.delete(later)
            self._told.pop(later, None)

    def facts(self, step: int) -> dict[str, Any]:
        """What `save` was told, to be compared before the state is restored."""
        return self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))[
            "facts"
        ]

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`.

        Args:
            step: of a checkpoint.
            like: arrays, or shapes, with the dtypes and shardings that it is to have. Shapes
                cost no memory beside what is restored.
        """
        if not self._is_sound(step):
            raise ValueError(f"{self.folder / str(step)} is damaged; take another checkpoint.")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_like(like)))
        return self._manager.restore(step, args=args)["state"]

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, kind, error, trace) -> None:
        # Processes finish a checkpoint together: after an error of one they never would. A loss
        # that is not finite, or a signal, ends all of them at the same step.
        if error is None or jax.process_count() == 1 or isinstance(error, AGREED):
            self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        self._wait()
        self._manager.close()


@dataclasses.dataclass
class Kept(preservation_policy.PreservationPolicy):
    """Which checkpoints are kept: the newest `newest`, the newest good one, and the best one."""

    newest: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """One answer a checkpoint, oldest first."""
        del context
        told = {number: info.metrics or {} for number, info in enumerate(checkpoints)}
        kept = {_last_good(told), _best(told)}
        return [number in kept or number >= len(told) - self.newest for number in told]


def _last_good(told: Mapping[int, Mapping[str, float]]) -> int | None:
    """The last step whose checkpoint a run may go back to; None without one."""
    return max((step for step, one in told.items() if one.get(_GOOD, 1)), default=None)


def _best(told: Mapping[int, Mapping[str, float]]) -> int | None:
    """The first step with the best score; None where none has one."""
    scored = {step: one[_SCORE] for step, one in told.items() if _SCORE in one}
    return min(scored, key=lambda step: (-scored[step], step), default=None)


def check_shared(folder: Path) -> None:
    """Refuses a folder that is not one and the same for all processes.

    Raises:
        ValueError: in all processes.
    """
    for process, lead in enumerate(gather(lead_on_file_system(folder))):
        if lead:
            raise ValueError(
                f"{folder}: process {process} does not see the files of process 0 there, but "
                "checkpoints are written and read by all processes together. Put --workdir or "
                "checkpoint.folder on a file system that all of them share."
            )

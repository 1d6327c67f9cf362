"""What keeps a run from being lost: skipped updates are counted, collapses noticed, and where the
settings say so the run goes back to its last good checkpoint.

A run that goes back is given other randomness: the number of roll-backs is part of its seeds, and
the stream of questions goes on where it was, so that it is not asked the questions of the steps
undone again. (Chowdhery et al. 2022, "PaLM", section 5.1, went back and left out batches: the same
data in another state of the model gave no spike.) All that the guards know is part of each
checkpoint, so that a run taken up again decides as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from sr1_jax.rl.learner import Learner, LearnerState
from sr1_jax.settings import Section, Setting, at_least, between
from sr1_jax.training.alarms import ACTIONS, ALARMS, Alarms
from sr1_jax.training.checkpoints import RunCheckpoints

GUARDS = Section(
    {
        "most_skipped": Setting(
            3,
            "steps in a row with an update that was skipped, since it was not finite; then the run "
            "goes back to its last good checkpoint",
            at_least(1),
        ),
        "most_roll_backs": Setting(
            2, "how often a run goes back before it ends instead", at_least(0)
        ),
        "window": Setting(20, "steps before this one that alarms compare it with", at_least(5)),
        "patience": Setting(3, "steps in a row beyond a threshold that are an alarm", at_least(1)),
        "rate_factor": Setting(
            0.5,
            "what alarms that lower the rate multiply it by",
            between(0, 1, open_below=True, open_above=True),
        ),
        "alarms": ALARMS,
    },
    free_on_resume=True,
)

_HELP = (
    "Lower learner.learning_rate, learner.critic_learning_rate, learner.clip or "
    "learner.gradient_clip and start again with the same --workdir"
)


class Diverged(FloatingPointError):
    """Training came to an end that going on would not mend; the last good checkpoint stays."""


class Verdict(NamedTuple):
    """What is to be done after a step.

    Attributes:
        action: the strictest of `ACTIONS` that was called for; "off": none.
        reasons: why, for people.
        good: whether the state after the step may be gone back to.
        metrics: to be logged.
    """

    action: str
    reasons: tuple[str, ...]
    good: bool
    metrics: dict[str, float]

    @property
    def undoes(self) -> bool:
        """Whether the run does not go on from this step."""
        return self.action in ("roll_back", "stop")


class Guards:
    """Judges each step of a run.

    Args:
        settings: the section guards.
        seed: of the run.
        state: what `facts` told of a run that goes on; {} at its start.

    Attributes:
        roll_backs: how often the run went back.
        rate_scale: what learning rates are multiplied by.
    """

    def __init__(self, settings: ml_collections.ConfigDict, seed: int, state: Mapping[str, Any]):
        self._settings, self._seed = settings, seed
        self._alarms = Alarms(settings, state)
        self._skipped: int = state.get("skipped", 0)
        self.roll_backs: int = state.get("roll_backs", 0)
        self.rate_scale: float = state.get("rate_scale", 1.0)

    @property
    def seed(self) -> int:
        """Of what is drawn now: that of the run, or after a roll-back one mixed from both."""
        if not self.roll_backs:
            return self._seed
        return int(np.random.SeedSequence((self._seed, self.roll_backs)).generate_state(1)[0])

    def facts(self) -> dict[str, Any]:
        """What belongs into a checkpoint; JSON-able."""
        own = {"skipped": self._skipped, "roll_backs": self.roll_backs}
        return {"guards": own | {"rate_scale": self.rate_scale} | self._alarms.state()}

    def judge(self, step: int, metrics: Mapping[str, float]) -> Verdict:
        """What is to be done after a step; says so on the screen, and lowers the rate if need be.

        Args:
            step: of training.
            metrics: of the step, the same in every process.
        """
        found = [(alarm.action, alarm.message) for alarm in self._alarms.observe(metrics)]
        if skipped := sum(metrics.get(f"{model}/skipped", 0) for model in ("policy", "critic")):
            self._skipped += 1
            bad = [key for key, value in metrics.items() if not math.isfinite(value)]
            what = f"{skipped:g} updates were skipped ({', '.join(bad) or 'loss or gradient'} not "
            what += f"finite), in {self._skipped} steps in a row"
            over = self._skipped >= self._settings.most_skipped
            found.append(("roll_back" if over else "warn", what))
        else:
            self._skipped = 0
        for action, message in found:
            print(f"Step {step}: {message}; {action.replace('_', ' ')}.", flush=True)
        action = max((action for action, _ in found), key=ACTIONS.index, default="off")
        if action == "lower_rate":
            self.rate_scale *= self._settings.rate_factor
        suspicious = self._alarms.suspects("roll_back", "stop")
        return Verdict(
            action,
            tuple(message for other, message in found if other == action),
            good=not (skipped or suspicious or action in ("roll_back", "stop")),
            metrics={
                "guards/alarms": float(len(found) - bool(skipped)),
                "guards/roll_backs": float(self.roll_backs),
                "guards/rate_scale": self.rate_scale,
            }
            | {
                f"guards/deviation/{name}": value for name, value in self._alarms.deviations.items()
            },
        )

    def go_back(
        self, step: int, verdict: Verdict, checkpoints: RunCheckpoints, learner: Learner
    ) -> tuple[LearnerState, int]:
        """The state to go on from after a step that is undone, and the step it was saved after.

        Nothing else should hold a state: what is restored takes its place in memory.

        Args:
            step: that is undone, with those before it that the checkpoint lacks.
            verdict: of that step.
            checkpoints: of the run; those after the one taken are deleted.
            learner: of the run.

        Raises:
            Diverged: the run is to stop, went back too often, or has no good checkpoint.
        """
        reasons = "; ".join(verdict.reasons)
        good, most = checkpoints.last_good, self._settings.most_roll_backs
        if good is None:
            raise Diverged(
                f"Step {step}: {reasons}. There is no good checkpoint to go back to: {_HELP}, or a "
                "new one; a smaller checkpoint.every saves one sooner."
            )
        there = f"The checkpoint after step {good} in {checkpoints.folder} is good"
        if verdict.action == "stop":
            raise Diverged(f"Step {step}: {reasons}. {there}: {_HELP} to go on from it.")
        if self.roll_backs >= most:
            raise Diverged(
                f"Step {step}: {reasons}, and the run has gone back {self.roll_backs} times "
                f"(guards.most_roll_backs={most}). {there}: {_HELP} to go on from it."
            )
        # Of what the checkpoint knew; but the count goes on, and a rate that was lowered stays so.
        saved = checkpoints.facts(good).get("guards", {})
        self._alarms, self._skipped = Alarms(self._settings, saved), 0
        self.roll_backs += 1
        checkpoints.forget_after(good)
        print(f"Roll-back {self.roll_backs}: on from step {good}, with other draws.", flush=True)
        return checkpoints.restore(good, learner.abstract_state), good

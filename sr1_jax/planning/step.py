"""What an average training step calls, and how often."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any, NamedTuple

from sr1_jax.environment.settings import CallOptions
from sr1_jax.evaluation import methods
from sr1_jax.planning.run import CACHE, CRITIC, POLICY, Run, processes_of
from sr1_jax.protocol.prompts import load_template
from sr1_jax.protocol.tags import SEARCH
from sr1_jax.retrieval.listing import Embed, Search
from sr1_jax.rl.micro_batches import smallest_bucket, trained_bound
from sr1_jax.rl.program_keys import (
    Accumulate,
    Apply,
    Kept,
    Merge,
    Prepare,
    Score,
    Totals,
    Zeros,
)
from sr1_jax.rl.settings import minibatches, row_lengths
from sr1_jax.rollout.program_keys import (
    Decode,
    Extend,
    Fork,
    Reshard,
    extend_columns,
    fork_length,
)


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What an episode of the run looks like, on average.

    Attributes:
        prompt_tokens: of a prompt.
        searches: observations an episode reads.
        segment_tokens: sampled before each search and for the answer.
        observation_tokens: of an observation.
        occupancy: share of decode steps times slots that samples a token.
    """

    prompt_tokens: int
    searches: int
    segment_tokens: int
    observation_tokens: int
    occupancy: float = 0.8

    @classmethod
    def of(cls, run: Run, **given: float | None) -> Assumptions:
        """Those of the settings' limits where nothing is given: two searches, segments a quarter
        of the longest, observations nine tenths of it, a prompt of 200 tokens, to which passages
        add an observation where the method puts them there."""
        rollout, method = run.config.rollout, run.config.method
        observation = max(1, rollout.max_observation_tokens * 9 // 10)
        template = load_template(methods.templates(run.config)[method])
        usual = {
            "prompt_tokens": 200 + template.wants_information * observation,
            "searches": methods.METHODS[method].calls_tools * min(2, rollout.max_searches),
            "segment_tokens": max(1, rollout.max_segment_tokens // 4),
            "observation_tokens": observation,
        }
        found = cls(**(usual | {key: value for key, value in given.items() if value is not None}))
        if not 0 < found.occupancy <= 1:
            raise ValueError(f"--occupancy must lie in (0, 1], not {found.occupancy}.")
        if found.length > rollout.max_context_tokens:
            raise ValueError(
                f"Episodes of {found.length} tokens (--prompt_tokens, --searches, "
                "--segment_tokens, --observation_tokens) exceed rollout.max_context_tokens="
                f"{rollout.max_context_tokens}."
            )
        return found

    @property
    def sampled(self) -> int:
        """Tokens an episode samples."""
        return (self.searches + 1) * self.segment_tokens

    @property
    def filled(self) -> float:
        """Tokens in a slot's cache when one is sampled, on average over those of an episode."""
        read = self.searches / 2 * (self.segment_tokens + self.observation_tokens)
        return self.prompt_tokens + read + self.segment_tokens / 2

    @property
    def length(self) -> int:
        """Tokens of a whole episode."""
        return self.prompt_tokens + self.sampled + self.searches * self.observation_tokens


def calls_of(run: Run, assumed: Assumptions) -> dict[Any, float]:
    """How often a step calls each program, by its key; fractions are averages."""
    return _calls_of_rollouts(run, assumed) | _calls_of_updates(run, assumed)


def _calls_of_rollouts(run: Run, assumed: Assumptions) -> dict[Any, float]:
    config, rollout = run.config, run.config.rollout
    episodes, slots = config.questions * config.samples, rollout.slots
    calls: Counter[Any] = Counter()
    calls[Reshard("layer")] = run.policy.layers
    calls[Reshard("ends")] = 1
    if run.policy.lora is not None:
        calls[Merge()] = 1
    calls[Decode(slots)] = episodes * assumed.sampled / (slots * assumed.occupancy)
    reads = [(assumed.prompt_tokens, 1), (assumed.observation_tokens, assumed.searches)]
    for tokens, times in reads:
        while tokens > 0 and times:
            columns = extend_columns(tokens, rollout.extend_buckets)
            calls[Extend(slots, columns)] += times * episodes / slots
            tokens -= columns
    if config.samples > 1 and rollout.share_prefixes:
        # Samples of a question have its whole prompt in common.
        length = fork_length(assumed.prompt_tokens, run.resident[CACHE].positions)
        calls[Fork(slots, length)] = episodes / slots
    if run.index is not None:
        calls |= _calls_of_searches(run, episodes * assumed.searches)
    return dict(calls)


def _calls_of_searches(run: Run, queries: int) -> dict[Any, float]:
    """Batches are as large as calls of the search tool; each process embeds its own, and searches
    its part of the index for those of all."""
    batch = CallOptions.of(run.config.environment.options, SEARCH).batch
    keys = [program.key for program in run.programs]
    found: dict[Any, float] = {}
    for kind, share in ((Search, 1), (Embed, processes_of(run.mesh))):
        sizes = [key for key in keys if isinstance(key, kind)]
        key = next((key for key in sizes if key.batch >= batch), sizes[-1])
        found[key] = queries / share / min(batch, key.batch)
    return found


def _calls_of_updates(run: Run, assumed: Assumptions) -> dict[Any, float]:
    learner = run.config.learner
    episodes = run.config.questions * run.config.samples
    usual = usual_micro_batch(run, assumed)
    updates = learner.epochs * minibatches(learner, episodes)
    calls: dict[Any, float] = {Prepare(): 1, Totals(): updates}
    if learner.skip_zero_advantages:  # all are assumed to be kept
        calls[Kept()] = 1
    if learner.kl_in != "none" or run.critic is not None or learner.old_logp == "trainer":
        # All mini-batches are scored together, but for shared prefixes.
        tokens = episodes * (assumed.length if learner.packing else usual.length)
        times = math.ceil(tokens / (learner.micro_batch * usual.length))
        if learner.share_prefixes:
            times = usual.in_an_epoch
        calls[Score(usual.length, usual.trained)] = times
    for model in (POLICY,) if run.critic is None else (POLICY, CRITIC):
        calls[Zeros(model)] = calls[Apply(model)] = updates
        key = Accumulate(model, usual.length, usual.trained)
        calls[key] = learner.epochs * usual.in_an_epoch
    return calls


class UsualMicroBatch(NamedTuple):
    """The micro-batch that an average episode is in.

    Attributes:
        length: tokens of a row.
        trained: bound on the tokens of a row that train.
        in_an_epoch: how many of them the mini-batches of all episodes are.
    """

    length: int
    trained: int
    in_an_epoch: float


def usual_micro_batch(run: Run, assumed: Assumptions) -> UsualMicroBatch:
    """The micro-batch of an average episode.

    Packed rows hold the longest episode there can be, since each mini-batch will have a long one,
    and are as full as their number allows. Of shared prefixes only the prompt is counted on.

    Raises:
        ValueError: no row holds the assumed episode.
    """
    config, learner = run.config, run.config.learner
    episodes = config.questions * config.samples
    if not learner.packing:
        length = smallest_bucket(assumed.length, learner.length_buckets)
        trained = trained_bound(assumed.sampled, length)
        return UsualMicroBatch(length, trained, episodes / learner.micro_batch)
    count = minibatches(learner, episodes)
    own = assumed.length
    if learner.share_prefixes:
        own -= assumed.prompt_tokens * (1 - 1 / config.samples)
    tokens = episodes / count * own

    def micro_batches(length: int) -> int:
        return math.ceil(tokens / (learner.micro_batch * length))

    longest = max(assumed.length, learner.length_buckets[-1])
    holding = [length for length in row_lengths(learner) if length >= longest]
    if not holding:
        raise ValueError(
            f"Episodes of {longest} tokens fit none of learner.row_lengths="
            f"{tuple(row_lengths(learner))}."
        )
    length = min(holding, key=lambda length: length * micro_batches(length))
    trained = trained_bound(math.ceil(assumed.sampled * length / own), length)
    return UsualMicroBatch(length, trained, count * micro_batches(length))


def kind_of(key: Any) -> str:
    """What programs of different sizes have in common: the name without the sizes."""
    match key:
        case Accumulate(model):
            return f"{model} accumulate"
        case Score() | Extend() | Fork() | Decode() | Search() | Embed():
            return type(key).__name__.lower()
    return str(key)

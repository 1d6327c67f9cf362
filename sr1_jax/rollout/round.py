"""One run of the engine: episodes go through slots until none is left.

A turn of the loop takes what the searches have found, puts waiting episodes into free slots,
prefills what is new, and lets the others decode. Slots whose search is under way are idle in
that; the host builds the finished trajectories while the device decodes.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

from sr1_jax.environment.episode import Episode, Next
from sr1_jax.environment.pool import SearchPool
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.automaton import TagAutomaton
from sr1_jax.rollout import programs
from sr1_jax.rollout.device_slots import DeviceSlots
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.rollout.prefixes import Share, plan_shares

# Searches may keep the next decode call waiting for this share of the last one's time: then
# their slots take part in it.
_PATIENCE = 0.1
# With nothing to decode, other processes are asked again after this many seconds.
_LONGEST_WAIT = 0.2


class Round:
    """The state of one run.

    Args:
        slots: of this process.
        layout: of the slots.
        pool: of the searches; a slot's number is the key of its request.
        episodes: all of this process.
        finish: called with each finished episode, while the device is busy.
        tokenizer: of the policy.
        automaton: finds the tags.
        correction: token ids of the corrective observation.
        config: see `rollout.default_config`.
        stats: counted up.
    """

    def __init__(
        self,
        slots: DeviceSlots,
        layout: SlotLayout,
        pool: SearchPool,
        episodes: Sequence[Episode],
        finish: Callable[[Episode], None],
        *,
        tokenizer: Tokenizer,
        automaton: TagAutomaton,
        correction: list[int],
        config: ml_collections.ConfigDict,
        stats: dict[str, float],
    ):
        self._slots, self._layout, self._pool = slots, layout, pool
        self._waiting = collections.deque(episodes)
        self._finish = finish
        self._tokenizer, self._automaton, self._correction = tokenizer, automaton, correction
        self._config, self._stats = config, stats
        self._episode_in: list[Episode | None] = [None] * layout.slots
        self._searching: set[int] = set()
        self._finished: list[Episode] = []
        self._fed: dict[int, list[int]] = {}  # what each slot has to be fed before it decodes
        self._decode_seconds = 0.0

    def play(self) -> None:
        """Runs until every episode, here and in the other processes, is over."""
        host_since = time.perf_counter()
        while True:
            self._collect(_PATIENCE * self._decode_seconds)
            self._prefill()
            left_S = self._left()
            live = len(self._waiting) + sum(episode is not None for episode in self._episode_in)
            running, live = self._layout.total([(left_S > 0).sum(), live])
            if not live:
                break
            if not running:
                self._wait()
                continue
            quota = max(1, math.ceil(self._config.turnover * running))
            decoded = self._slots.decode(left_S, running - quota)
            self._stats["host_seconds"] += time.perf_counter() - host_since
            began = time.perf_counter()
            self._finish_all()
            decoded = self._slots.read(decoded)
            host_since = time.perf_counter()
            self._decode_seconds = host_since - began
            self._stats["decode_seconds"] += self._decode_seconds
            self._advance(decoded)
        self._finish_all()

    def _collect(self, patience: float) -> None:
        """Takes the answers that are there, and those that come within `patience` seconds."""
        until = time.monotonic() + patience
        while self._take_answers(max(0.0, until - time.monotonic())):
            if time.monotonic() >= until:
                return

    def _wait(self) -> None:
        """Nothing can decode before a search is back, here or in another process."""
        began = time.perf_counter()
        self._finish_all()
        self._take_answers(_LONGEST_WAIT)
        self._stats["retrieval_wait_seconds"] += time.perf_counter() - began

    def _take_answers(self, wait: float) -> bool:
        """Shows what has come in, waiting up to `wait` seconds for the first; says if any has."""
        found = self._pool.poll(wait)
        for answer in found:
            self._observe(answer.key, answer.observation, answer.passages)
        return bool(found)

    def _observe(self, slot: int, observation: list[int], passages) -> None:
        """Shows an observation to the episode in a slot; passages is None for a correction."""
        self._searching.discard(slot)
        episode = self._episode_in[slot]
        if episode.observe(observation, passages) is Next.NOTHING:
            self._leave(slot)
        else:
            self._fed[slot] = self._slots.observe(slot, observation)

    def _leave(self, slot: int) -> None:
        self._finished.append(self._episode_in[slot])
        self._episode_in[slot] = None

    def _finish_all(self) -> None:
        for episode in self._finished:
            self._finish(episode)
        self._finished.clear()

    def _prefill(self) -> None:
        """Puts waiting episodes into free slots; feeds prompts and observations."""
        free = [slot for slot, episode in enumerate(self._episode_in) if episode is None]
        newcomers = [(slot, self._waiting.popleft()) for slot in free[: len(self._waiting)]]
        shares = self._shares(newcomers)
        waves = 1 + max((share.wave for share in shares), default=0)
        (waves,) = self._layout.most([waves])
        for wave in range(waves):
            arriving = [
                (slot, episode, share)
                for (slot, episode), share in zip(newcomers, shares)
                if share.wave == wave
            ]
            self._slots.fork(
                (share.source, slot, share.length)
                for slot, _, share in arriving
                if share.source is not None
            )
            for slot, episode, share in arriving:
                self._episode_in[slot] = episode
                self._slots.restart(slot, episode.stream, episode.ids, share.length)
                self._fed[slot] = episode.ids[share.length : -1]
                if share.source is None:
                    self._stats["forked_tokens"] += share.length
            self._slots.extend(self._fed)
            self._fed = {}

    def _shares(self, newcomers: Sequence[tuple[int, Episode]]) -> list[Share]:
        if not self._config.share_prefixes:
            return [Share(0, None, 0)] * len(newcomers)
        prompts = [(slot, episode.ids[:-1]) for slot, episode in newcomers]
        return plan_shares(
            self._slots.cached_SX, self._slots.length_S, prompts, self._layout.part_of
        )

    def _left(self) -> np.ndarray:
        """Tokens each slot may sample in the next call: 0 for those that wait."""
        return np.array(
            [
                0 if episode is None or slot in self._searching else episode.tokens_left
                for slot, episode in enumerate(self._episode_in)
            ],
            np.int32,
        )

    def _advance(self, decoded: programs.Decoded) -> None:
        """Takes what was sampled; each slot at the end of its segment goes on to what follows."""
        stats, count = self._stats, int(decoded.count_S.sum())
        slot_steps = int(decoded.steps_P[0]) * self._layout.slots
        stats["decode_calls"] += 1
        for prefix in ("", "busy_") if self._waiting else ("",):
            stats[f"{prefix}decoded_tokens"] += count
            stats[f"{prefix}slot_steps"] += slot_steps
        for slot, episode in enumerate(self._episode_in):
            if episode is None or slot in self._searching:
                continue
            size = decoded.count_S[slot]
            episode.add_sampled(
                decoded.tokens_SN[slot, :size].tolist(), decoded.logp_SN[slot, :size].tolist()
            )
            stop = self._automaton.stop(int(decoded.state_S[slot]))
            follows = episode.advance(stop, self._tokenizer)
            if follows is Next.SEARCH:
                self._searching.add(slot)
                self._pool.submit(slot, episode.queries)
            elif follows is Next.CORRECTION:
                self._observe(slot, self._correction, None)
            elif follows is Next.NOTHING:
                self._leave(slot)

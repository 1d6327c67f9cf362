"""One run of the engine: episodes go through slots until none is left.

A turn of the loop takes what tools have answered, puts waiting episodes into free slots, prefills
what is new, and lets the others decode. Slots that wait for a tool are idle in that; the host
builds the finished trajectories while the device decodes. Nothing here knows a tag or a text: an
episode is asked what follows, and gives ids to feed.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np

from sr1_jax.environment.episode import Episode, Next
from sr1_jax.environment.pool import Answer, ToolPool
from sr1_jax.environment.reader import Reader
from sr1_jax.protocol.automaton import TagAutomaton
from sr1_jax.rollout import programs
from sr1_jax.rollout.device_slots import DeviceSlots
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.rollout.prefixes import Share, plan_shares
from sr1_jax.rollout.readers import Readers, Reading

# Tools may keep the next decode call waiting for this share of the last one's time: then their
# slots take part in it. More of it fills more slots, and keeps all of them waiting for longer.
_PATIENCE = 0.015
# With nothing to decode, other processes are asked again after this many seconds.
_LONGEST_WAIT = 0.2


class EpisodeLoop:
    """The state of one run.

    Args:
        slots: of this process.
        layout: of the slots.
        pool: of the tools; a slot's number is the key of its request.
        episodes: all of this process.
        finish: called with each finished episode, while the device is busy.
        automaton: of the tags.
        config: see `rollout.default_config`.
        stats: counted up.
        reader: where passages are read by the policy itself; None: they are shown as they are.
    """

    def __init__(
        self,
        slots: DeviceSlots,
        layout: SlotLayout,
        pool: ToolPool,
        episodes: Sequence[Episode],
        finish: Callable[[Episode], None],
        *,
        automaton: TagAutomaton,
        config: ml_collections.ConfigDict,
        stats: dict[str, float],
        reader: Reader | None = None,
    ):
        self._slots, self._layout, self._pool = slots, layout, pool
        self._waiting = collections.deque(episodes)
        self._finish = finish
        self._automaton = automaton
        self._reader = reader
        self._readers = Readers(layout.slots)
        self._returning: list[tuple[int, Episode]] = []  # whose slot a reader had
        self._config, self._stats = config, stats
        self._episode_in: list[Episode | None] = [None] * layout.slots
        self._asking: set[int] = set()  # slots that wait for a tool, or for a reader
        # With rollout.deterministic: decode calls so far, the one after which each request came,
        # and answers that are there before their time.
        self._decoded = 0
        self._asked_after: dict[int, int] = {}
        self._early: list[Answer] = []
        self._finished: list[Episode] = []
        self._fed: dict[int, list[int]] = {}  # what each slot has to be fed before it decodes
        self._decode_seconds = 0.0

    def play(self) -> None:
        """Runs until every episode, here and in the other processes, is over."""
        host_since, waited = time.perf_counter(), self._stats["tool_wait_seconds"]
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
            self._decoded += 1
            waited = self._stats["tool_wait_seconds"] - waited
            self._stats["host_seconds"] += time.perf_counter() - host_since - waited
            began = time.perf_counter()
            self._finish_all()
            decoded = self._slots.read(decoded)
            host_since, waited = time.perf_counter(), self._stats["tool_wait_seconds"]
            self._decode_seconds = host_since - began
            self._stats["decode_seconds"] += self._decode_seconds
            self._advance(decoded)
        self._finish_all()

    def _collect(self, patience: float) -> None:
        """Takes the answers that are there, and those that come within `patience` seconds."""
        if self._config.deterministic:
            # A request may be worked on for exactly one decode call, however long that takes.
            self._take_asked_before(self._decoded)
            return
        until = time.monotonic() + patience
        while self._take_answers(max(0.0, until - time.monotonic())):
            if time.monotonic() >= until:
                return

    def _wait(self) -> None:
        """Nothing can decode before a tool has answered, here or in another process."""
        self._finish_all()
        if self._config.deterministic:
            self._take_asked_before(self._decoded + 1)
        else:
            self._take_answers(_LONGEST_WAIT)

    def _poll(self, wait: float) -> list[Answer]:
        """Answers that have come in, after up to `wait` seconds in which nothing decodes."""
        began = time.perf_counter()
        answers = self._pool.poll(wait)
        if wait:
            self._stats["tool_wait_seconds"] += time.perf_counter() - began
        return answers

    def _take_answers(self, wait: float) -> bool:
        """Shows what has come in, waiting up to `wait` seconds for the first; says if any has."""
        answers = self._poll(wait)
        for answer in answers:
            self._take(answer)
        return bool(answers)

    def _take_asked_before(self, call: int) -> None:
        """Waits for, and takes, the answers to what was asked before that decode call."""
        # Also what is not due is started now, to be worked on while slots decode.
        self._early += self._pool.poll()
        due = {slot for slot, asked in self._asked_after.items() if asked < call}
        while not due <= {answer.key for answer in self._early}:
            self._early += self._poll(_LONGEST_WAIT)
        for answer in sorted(self._early, key=lambda answer: answer.key):
            if answer.key in due:
                self._take(answer)
                del self._asked_after[answer.key]
        self._early = [answer for answer in self._early if answer.key not in due]

    def _take(self, answer: Answer) -> None:
        """Shows the answer of a tool to the episode that asked, or has it read first."""
        episode = self._episode_in[answer.key]
        if self._reader is not None and self._reader.reads(answer):
            reader = self._reader.episode(episode, answer)
            if reader is not None:
                self._readers.add(Reading(reader, episode, answer))
                return
            self._stats["reader_skipped"] += 1
            answer = self._reader.answer(answer, None)
        self._asking.discard(answer.key)
        self._shown(answer.key, answer.ids, episode.answered(answer.observation, answer.ids))

    def _has_read(self, slot: int, reading: Reading) -> None:
        """Shows what the reader in a slot wrote, its last word, to the episode that asked."""
        answer = self._reader.answer(reading.answer, reading.episode)
        self._stats["reader_episodes"] += 1
        self._stats["reader_tokens"] += answer.observation.record.reading.tokens
        self._stats["reader_no_answer"] += answer.observation.record.reading.answer is None
        follows = reading.asking.answered(answer.observation, answer.ids)
        if slot != answer.key:
            self._asking.discard(answer.key)
            self._shown(answer.key, answer.ids, follows)
            return
        self._episode_in[slot] = reading.asking
        if follows is Next.NOTHING:
            self._leave(slot)
        else:
            self._returning.append((slot, reading.asking))

    def _shown(self, slot: int, ids: list[int], follows: Next) -> None:
        """Feeds what an episode was shown, unless that ended it."""
        if follows is Next.NOTHING:
            self._leave(slot)
        else:
            self._fed[slot] = self._slots.observe(slot, ids)

    def _leave(self, slot: int) -> None:
        """Takes an episode that is over out of its slot."""
        episode, self._episode_in[slot] = self._episode_in[slot], None
        reading = self._readers.leave(slot)
        if reading is None:
            self._finished.append(episode)
        else:
            self._has_read(slot, reading)

    def _finish_all(self) -> None:
        for episode in self._finished:
            self._finish(episode)
        self._finished.clear()

    def _prefill(self) -> None:
        """Puts waiting episodes into free slots; feeds prompts and observations."""
        newcomers = self._newcomers()
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
                episode.begin()
                self._slots.restart(slot, episode.stream, episode.ids, share.length)
                self._fed[slot] = episode.ids[share.length : -1]
                if share.source is None:
                    self._stats["forked_tokens"] += share.length
            self._slots.extend(self._fed)
            self._fed = {}

    def _newcomers(self) -> list[tuple[int, Episode]]:
        """Episodes to be prefilled whole, each with its slot: those whose slot a reader had,
        readers, and new questions."""
        taken = [slot for slot, episode in enumerate(self._episode_in) if episode is not None]
        free = [slot for slot, episode in enumerate(self._episode_in) if episode is None]
        room = len(free)
        if self._reader is not None:
            room = max(0, self._readers.most_asking - (len(taken) - self._readers.seated))
        newcomers, self._returning = self._returning, []
        running = any(slot not in self._asking for slot in taken)
        for slot, reading in self._readers.seat(free, running=running):
            if slot == reading.answer.key:
                self._asking.discard(slot)
                self._stats["evictions"] += 1
            newcomers.append((slot, reading.episode))
        room = min(room, len(free), len(self._waiting))
        return newcomers + [(slot, self._waiting.popleft()) for slot in free[:room]]

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
                0 if episode is None or slot in self._asking else episode.tokens_left
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
        sampling = [
            (slot, episode)
            for slot, episode in enumerate(self._episode_in)
            if episode is not None and slot not in self._asking
        ]
        for slot, episode in sampling:
            size = decoded.count_S[slot]
            episode.add_sampled(
                decoded.tokens_SN[slot, :size].tolist(), decoded.logp_SN[slot, :size].tolist()
            )
            stop = self._automaton.stop(int(decoded.state_S[slot]))
            follows = episode.advance(stop)
            if follows is Next.POLICY and stop is not None:
                # It was let pass; what follows it in its token may begin the next.
                self._slots.state_S[slot] = self._automaton.after(episode.rest.encode())
            elif follows is Next.CALL:
                self._asking.add(slot)
                self._asked_after[slot] = self._decoded
                self._pool.submit(slot, episode.tag, episode.request)
            elif follows is Next.CORRECTION:
                self._shown(slot, episode.correction, episode.corrected())
            elif follows is Next.NOTHING:
                self._leave(slot)

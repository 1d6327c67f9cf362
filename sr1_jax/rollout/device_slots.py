"""Slots as the device sees them: the KV cache, and for each slot what the next call has to know.

Calls are dispatched and not waited for; only what `read` asks for is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.serving import ServingParams, empty_cache
from sr1_jax.rollout import programs
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.rollout.program_keys import (
    Decode,
    Extend,
    Fork,
    extend_columns,
    fork_length,
    programs_on_slots,
)


class Dispatched(NamedTuple):
    """A decode call that may still run.

    Attributes:
        decoded: what it does to its rows.
        slot_of: the slot of each row; None: row r is slot r. Rows of padding name a slot past the
            last.
    """

    decoded: programs.Decoded
    slot_of: np.ndarray | None


class DeviceSlots:
    """The slots of this process during one run.

    Args:
        decoder: shape of the policy.
        params: of the policy, in the layout of rollouts.
        config: see `rollout.default_config`.
        layout: where slots are.
        mesh: of `sharding.make_mesh`.
        next_state: int32 [states, V], the tag automaton, on the device.
        first_final: automaton states from this one on are final.
        seed_key: random key of run and step.
        stats: counted up.

    Attributes:
        pending_S, length_S, state_S, stream_S2: see `programs.Slots`.
        cached_SX: the token ids whose keys and values the cache holds, `length_S` of each row.
    """

    def __init__(
        self,
        decoder: DecoderConfig,
        params: ServingParams,
        config: ml_collections.ConfigDict,
        layout: SlotLayout,
        mesh: Any,
        *,
        next_state: jax.Array,
        first_final: int,
        seed_key: jax.Array,
        stats: dict[str, float],
    ):
        self._decoder, self._params, self._mesh = decoder, params, mesh
        self._config, self._layout, self._stats = config, layout, stats
        self._next_state, self._first_final, self._seed_key = next_state, first_final, seed_key
        self._cache = empty_cache(decoder, config.slots, config.max_context_tokens, mesh)
        self._positions = self._cache.positions
        slots = layout.slots
        self.pending_S = np.zeros(slots, np.int32)
        self.length_S = np.zeros(slots, np.int32)
        self.state_S = np.zeros(slots, np.int32)
        self.stream_S2 = np.zeros((slots, 2), np.uint32)
        self.cached_SX = np.full((slots, self._positions), -1, np.int32)

    @property
    def params(self) -> ServingParams:
        """Of the policy, in the layout of rollouts."""
        return self._params

    def renew(self, seed_key: jax.Array, stats: dict[str, float]) -> None:
        """Makes ready for another run; the caches keep what they hold.

        Args:
            seed_key: random key of run and step.
            stats: counted up from now on.
        """
        self._seed_key, self._stats = seed_key, stats

    def prefill(self, slot: int, prompt: Sequence[int]) -> None:
        """Puts a prompt into the cache of an idle slot, but for its last token."""
        self.restart(slot, (0, 0), prompt, 0)
        self.extend({slot: prompt[:-1]})

    def restart(self, slot: int, stream: tuple[int, int], prompt: Sequence[int], kept: int) -> None:
        """Gives a slot to a new episode, of whose prompt its cache holds `kept` tokens."""
        self.stream_S2[slot] = stream
        self.state_S[slot] = 0
        self.length_S[slot] = kept
        self.pending_S[slot] = prompt[-1]
        self.cached_SX[slot, :kept] = prompt[:kept]

    def observe(self, slot: int, observation: Sequence[int]) -> list[int]:
        """Starts the next segment after an observation; returns the ids that have to be fed."""
        fed = [int(self.pending_S[slot]), *observation[:-1]]
        self.pending_S[slot] = observation[-1]
        self.state_S[slot] = 0
        return fed

    def fork(self, copies: Iterable[tuple[int, int, int]]) -> None:
        """Copies the beginnings of caches: (source slot, target slot, tokens), all read before
        any is written."""
        copies = list(copies)
        longest = max((length for _, _, length in copies), default=0)
        rows, longest = self._layout.most([self._most_in_a_part(t for _, t, _ in copies), longest])
        if not rows:
            return
        began = time.perf_counter()
        target_PR = self._padding(self._layout.rows(rows))
        source_PR = np.zeros_like(target_PR)
        for index, (source, target, length) in self._numbered(copies, key=1):
            source_PR[index] = source % self._layout.per_part
            target_PR[index] = target % self._layout.per_part
            self._stats["forked_tokens"] += length
        length = fork_length(longest, self._positions)
        self._fork_rows(source_PR, target_PR, length)
        self._account("fork_seconds", began)

    def _fork_rows(self, source_PR: np.ndarray, target_PR: np.ndarray, length: int) -> None:
        rows = self._layout.place((source_PR.ravel(), target_PR.ravel()))
        self._cache = programs.fork(self._cache, *rows, length=length, mesh=self._mesh)

    def extend(self, ids_of: Mapping[int, Sequence[int]]) -> None:
        """Appends tokens to the caches of some slots, in calls of a few fixed shapes."""
        began = time.perf_counter()
        buckets = tuple(self._config.extend_buckets)
        rest = {slot: ids for slot, ids in ids_of.items() if len(ids)}
        while True:
            groups: dict[int, dict[int, Sequence[int]]] = {size: {} for size in buckets}
            for slot, ids in rest.items():
                size = extend_columns(len(ids), buckets)
                groups[size][slot] = ids[:size]
            rows = self._layout.most([self._most_in_a_part(group) for group in groups.values()])
            if not rows.any():
                break
            for (size, group), count in zip(groups.items(), rows):
                if count:
                    self._extend_once(group, count, size)
            rest = {
                slot: ids[buckets[-1] :] for slot, ids in rest.items() if len(ids) > buckets[-1]
            }
        self._account("extend_seconds", began)

    def _extend_once(self, ids_of: Mapping[int, Sequence[int]], rows: int, columns: int) -> None:
        calls = self._layout.calls(rows)
        rows_PR = self._padding(sum(calls))
        ids_PRC = np.zeros((*rows_PR.shape, columns), np.int32)
        positions_PRC = np.full(ids_PRC.shape, self._positions, np.int32)
        for index, (slot, ids) in self._numbered(ids_of.items(), key=0):
            start, end = self.length_S[slot], self.length_S[slot] + len(ids)
            rows_PR[index] = slot % self._layout.per_part
            ids_PRC[index][: len(ids)] = ids
            positions_PRC[index][: len(ids)] = np.arange(start, end)
            self.cached_SX[slot, start:end] = ids
            self.length_S[slot] = end
            self._stats["prefilled_tokens"] += len(ids)
        self._stats["extend_positions"] += ids_PRC.size
        for end, size in zip(np.cumsum(calls), calls):
            part = slice(end - size, end)
            ids_RC, positions_RC = (
                x[:, part].reshape(-1, columns) for x in (ids_PRC, positions_PRC)
            )
            self._cache = programs.extend(
                self._params,
                self._cache,
                *self._layout.place((rows_PR[:, part].ravel(), ids_RC, positions_RC)),
                decoder=self._decoder,
                mesh=self._mesh,
            )

    def decode(self, left_S: np.ndarray, least_running: int) -> Dispatched:
        """Dispatches one call of the decode program; `read` fetches what it did."""
        running, counts = np.flatnonzero(left_S), self._layout.decode_counts
        most = self._most_in_a_part(running)
        if len(counts) > 1:
            (most,) = self._layout.most([most])
        count = next(count for count in counts if count >= most)
        return self._decode_rows(running, count, left_S, least_running)

    def _decode_rows(
        self, running: Sequence[int], count: int, left_S: np.ndarray, least_running: int
    ) -> Dispatched:
        """Decodes `count` rows of each part, those of the slots `running` among them."""
        config, layout = self._config, self._layout
        slots = programs.Slots(
            self.pending_S, self.length_S, self.state_S, left_S.astype(np.int32), self.stream_S2
        )
        rows_R = slot_of = None
        if count < layout.per_part:
            slot_of_PR = np.full((layout.parts, count), layout.slots)
            for index, (slot,) in self._numbered(((slot,) for slot in running), key=0):
                slot_of_PR[index] = slot
            slot_of = slot_of_PR.ravel()
            padding = slot_of == layout.slots
            rows_R = np.where(padding, layout.per_part, slot_of % layout.per_part).astype(np.int32)
            slots = jax.tree.map(lambda x: x[np.where(padding, 0, slot_of)], slots)
            slots = slots._replace(left_S=np.where(padding, 0, slots.left_S).astype(np.int32))
        self._cache, decoded = programs.decode(
            self._params,
            self._cache,
            # Copies: the host goes on writing to its own.
            *layout.place((rows_R, jax.tree.map(np.copy, slots))),
            np.int32(least_running),
            self._next_state,
            self._seed_key,
            decoder=self._decoder,
            mesh=self._mesh,
            steps=config.decode_steps,
            temperature=float(config.temperature),
            top_k=config.top_k,
            top_p=float(config.top_p),
            first_final=self._first_final,
        )
        return Dispatched(decoded, slot_of)

    def read(self, dispatched: Dispatched) -> programs.Decoded:
        """Waits for a decode call and brings the slots up to date; returns NumPy arrays, a row a
        slot."""
        decoded = programs.Decoded(*self._layout.read(tuple(dispatched.decoded)))
        if dispatched.slot_of is not None:
            decoded = self._in_slots(decoded, dispatched.slot_of)
        self.state_S = np.array(decoded.state_S)
        for slot in np.flatnonzero(decoded.count_S):
            tokens_N = decoded.tokens_SN[slot, : decoded.count_S[slot]]
            start, end = self.length_S[slot], self.length_S[slot] + len(tokens_N)
            self.cached_SX[slot, start] = self.pending_S[slot]
            self.cached_SX[slot, start + 1 : end] = tokens_N[:-1]
            self.length_S[slot] = end
            self.pending_S[slot] = tokens_N[-1]
        return decoded

    def _in_slots(self, decoded: programs.Decoded, slot_of: np.ndarray) -> programs.Decoded:
        """What was decoded for some slots, with rows for all; nothing is new in the others."""
        inside = slot_of < self._layout.slots

        def spread(rows, start):
            start[slot_of[inside]] = rows[inside]
            return start

        slots, steps = self._layout.slots, decoded.tokens_SN.shape[1]
        return programs.Decoded(
            spread(decoded.tokens_SN, np.zeros((slots, steps), np.int32)),
            spread(decoded.logp_SN, np.zeros((slots, steps), np.float32)),
            spread(decoded.count_S, np.zeros(slots, np.int32)),
            spread(decoded.state_S, self.state_S.copy()),
            decoded.steps_P,
        )

    def warm_up(self) -> None:
        """Calls every program in every shape, to no effect: all rows are padding, all slots
        idle."""
        idle_S = np.zeros(self._layout.slots)
        parts = self._config.slots // self._layout.per_part
        for program in programs_on_slots(self._config, self._layout, self._positions):
            match program:
                case Extend(rows, columns):
                    self._extend_once({}, rows // parts, columns)
                case Fork(rows, length):
                    target_PR = self._padding(rows // parts)
                    self._fork_rows(np.zeros_like(target_PR), target_PR, length)
                case Decode(slots):
                    self.read(self._decode_rows([], slots // parts, idle_S, 0))

    def _padding(self, rows: int) -> np.ndarray:
        """int32 [parts, rows], all of them rows of padding."""
        return np.full((self._layout.parts, rows), self._layout.per_part, np.int32)

    def _most_in_a_part(self, slots: Iterable[int]) -> int:
        parts = self._layout.part_of[list(slots)]
        return int(np.bincount(parts).max()) if len(parts) else 0

    def _numbered(self, items: Iterable[tuple], *, key: int):
        """((part, row in the part), item) for each item; item[key] is its slot."""
        filled = np.zeros(self._layout.parts, np.int32)
        for item in items:
            part = self._layout.part_of[item[key]]
            yield (part, filled[part]), item
            filled[part] += 1

    def _account(self, key: str, began: float) -> None:
        if self._config.profile:
            jax.block_until_ready(self._cache)
        self._stats[key] += time.perf_counter() - began

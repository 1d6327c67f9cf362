"""The rollout engine: batched episodes of think, search, read, answer.

The host keeps the episodes and decides turns; the device keeps the KV cache, which survives the
turns: only new tokens are ever prefilled. A slot whose episode is over takes the next question
in the same round.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from sr1_jax.data.questions import as_question
from sr1_jax.models.decoder import Decoder, KVCache
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.automaton import build_automaton
from sr1_jax.protocol.observations import CORRECTION, render_observation
from sr1_jax.protocol.prompts import load_template
from sr1_jax.protocol.tags import STOP_TAGS
from sr1_jax.retrieval.base import Passage, Retriever
from sr1_jax.rollout import programs
from sr1_jax.rollout.episodes import Episode, Limits, Next
from sr1_jax.rollout.settings import check_config
from sr1_jax.rollout.trajectory import Trajectory


class Engine:
    """Runs episodes of a policy against a retriever.

    Args:
        model: the policy; `run(params=…)` replaces its parameters, as training does.
        tokenizer: of the policy.
        retriever: searched between segments; may be None if no search is ever made
            (max_searches 0 and a prompt without passages).
        config: see `rollout.default_config`.
        cache_sharding: where the cache lives; by default where JAX puts it.

    Attributes:
        stats: totals of the last `run`: tokens, seconds by part, searches, compilations.

    Raises:
        ValueError: settings that cannot work (see `settings.check_config`).
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        retriever: Retriever | None,
        config: ml_collections.ConfigDict,
        *,
        cache_sharding: Any = None,
    ):
        check_config(config)
        self._config = config
        self._model_config = model.config
        self._graph, self._params = nnx.split(model)
        self._tokenizer = tokenizer
        self._retriever = retriever
        self._template = load_template(config.template)
        if retriever is None and (config.max_searches or self._template.wants_information):
            raise ValueError(
                "These settings search, but there is no retriever: give one, or set "
                "rollout.max_searches=0 and a template without {information}."
            )
        self._limits = Limits(
            config.max_searches, config.max_segment_tokens, config.max_context_tokens
        )
        self._correction = tokenizer.encode(CORRECTION)
        # Refuses a budget that cannot hold the tags before anything is run.
        render_observation([], tokenizer, config.max_observation_tokens)
        self._automaton = build_automaton(tokenizer.token_bytes, tokenizer.eos_ids, STOP_TAGS)
        # The model may have more rows of logits than the tokenizer has ids; those add no text.
        states = np.arange(len(self._automaton.next_state), dtype=np.int32)
        table = np.repeat(states[:, None], model.config.vocab_size, axis=1)
        table[:, : tokenizer.vocab_size] = self._automaton.next_state
        self._next_state = jnp.asarray(table)
        self._cache_sharding = cache_sharding
        self.stats: dict[str, float] = {}

    def run(
        self,
        questions: Iterable[Any],
        seed: int = 0,
        samples: int = 1,
        *,
        step: int = 0,
        params: nnx.State | None = None,
    ) -> list[Trajectory]:
        """Runs `samples` episodes a question and returns them question by question.

        A trajectory depends on (seed, step, question id, sample) and the parameters, not on the
        order of the questions or the number of slots.

        Args:
            questions: dicts or objects with id, question, golden_answers. A question that comes
                again, as at the end of an epoch, gets further samples.
            seed: of the run.
            samples: episodes a question.
            step: of training.
            params: the policy's parameters, instead of those of the constructor.

        Raises:
            ValueError: no question, two different ones with one id, or a prompt that leaves no
                room for an answer; names the question.
        """
        self.stats = collections.defaultdict(float)  # first: prompts may need a search, too
        episodes = self._episodes([as_question(q) for q in questions], samples)
        compiled, began = programs.compilations(), time.perf_counter()
        seed_key = jax.random.fold_in(jax.random.key(seed), step)
        _Round(self, episodes, seed_key, self._params if params is None else params).run()
        self.stats["seconds"] = time.perf_counter() - began
        self.stats["compilations"] = programs.compilations() - compiled
        self.stats["episodes"] = len(episodes)
        return [
            episode.trajectory(
                self._tokenizer,
                metric=self._config.reward_metric,
                format_weight=self._config.format_weight,
            )
            for episode in episodes
        ]

    def _episodes(self, questions, samples: int) -> list[Episode]:
        if not questions:
            raise ValueError("There are no questions to run.")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}.")
        text_of: dict[str, str] = {}
        for question in questions:
            if text_of.setdefault(question.id, question.question) != question.question:
                raise ValueError(
                    f"Question id {question.id!r} stands for two different questions; ids must be "
                    "unique, by convention source:split:index."
                )
        information: list = [None] * len(questions)
        if self._template.wants_information:
            found = self._retrieve([q.question for q in questions])
            information = [self._observation(passages) for passages in found]
        episodes = []
        first_sample: collections.Counter[str] = collections.Counter()
        for question, passages in zip(questions, information):
            prompt = self._template.render(self._tokenizer, question.question, passages)
            if len(prompt) >= self._limits.max_context_tokens:
                raise ValueError(
                    f"Question {question.id}: its prompt has {len(prompt)} tokens, which leaves no "
                    f"room for an answer in rollout.max_context_tokens="
                    f"{self._limits.max_context_tokens}; raise that or shorten the question."
                )
            if not prompt:
                raise ValueError(f"Question {question.id}: its prompt is empty.")
            start = first_sample[question.id]
            first_sample[question.id] += samples
            episodes += [
                Episode(question, start + index, prompt, self._limits) for index in range(samples)
            ]
        return episodes

    def _observation(self, passages: list[Passage]) -> list[int]:
        return render_observation(passages, self._tokenizer, self._config.max_observation_tokens)

    def _retrieve(self, queries: list[str]) -> list[list[Passage]]:
        """One batched search, tried again as often as the settings say."""
        wait = self._config.retriever_backoff_seconds
        for attempt in range(1, self._config.retriever_attempts + 1):
            try:
                found = self._retriever.search(queries, self._config.passages)
                if len(found) != len(queries):
                    raise RuntimeError(f"{len(found)} results came back for {len(queries)} queries")
                return found
            except Exception as error:
                if attempt < self._config.retriever_attempts:
                    time.sleep(wait * 2 ** (attempt - 1))
                elif self._config.retriever_failure == "raise":
                    raise RuntimeError(
                        f"The retriever failed {attempt} times; the last error was: {error!r}. "
                        'Mend it, or set rollout.retriever_failure="empty" to go on without.'
                    ) from error
        self.stats["retriever_failures"] += len(queries)
        return [[] for _ in queries]


class _Round:
    """One call of `run`: the cache, which episode sits in which slot, and the loop."""

    def __init__(self, engine: Engine, episodes: list[Episode], seed_key, params):
        self._engine = engine
        self._config = engine._config
        self._params = params
        self._seed_key = seed_key
        self._waiting = collections.deque(episodes)
        slots = self._config.slots
        self._slots: list[Episode | None] = [None] * slots
        # Host copies of what `decode` wants to know; see programs.Slots.
        self._pending = np.zeros(slots, np.int32)
        self._length = np.zeros(slots, np.int32)
        self._state = np.zeros(slots, np.int32)
        self._stream = np.zeros((slots, 2), np.uint32)
        cache = KVCache.empty(engine._model_config, slots, self._config.max_context_tokens)
        if engine._cache_sharding is not None:
            cache = jax.device_put(cache, engine._cache_sharding)
        self._cache = cache

    def run(self) -> None:
        appended = self._admit()
        while any(episode is not None for episode in self._slots):
            self._extend(appended)
            appended = self._observe(self._decode())
            appended |= self._admit()

    def _admit(self) -> dict[int, list[int]]:
        """Puts waiting episodes into free slots; returns the prompts to prefill."""
        prompts = {}
        for slot, occupant in enumerate(self._slots):
            if occupant is None and self._waiting:
                episode = self._waiting.popleft()
                self._slots[slot] = episode
                self._stream[slot] = episode.stream
                self._length[slot] = self._state[slot] = 0
                prompts[slot] = episode.ids
                self._pending[slot] = episode.ids[-1]
        return prompts

    def _decode(self) -> dict[int, Next]:
        """Lets every slot sample; returns what the slots at the end of a segment wait for."""
        began = time.perf_counter()
        engine, config = self._engine, self._config
        left = [0 if episode is None else episode.tokens_left for episode in self._slots]
        slots = programs.Slots(
            self._pending, self._length, self._state, np.array(left, np.int32), self._stream
        )
        self._cache, decoded = programs.decode(
            self._params,
            self._cache,
            slots,
            engine._next_state,
            self._seed_key,
            graph=engine._graph,
            steps=config.decode_steps,
            temperature=float(config.temperature),
            top_k=config.top_k,
            top_p=float(config.top_p),
            first_final=engine._automaton.first_final,
        )
        tokens_SN, logp_SN, count_S, self._state = (np.array(x) for x in decoded)
        engine.stats["decode_seconds"] += time.perf_counter() - began
        engine.stats["decoded_tokens"] += int(count_S.sum())
        waits = {}
        for slot, episode in enumerate(self._slots):
            if episode is None:
                continue
            count = count_S[slot]
            episode.add_sampled(tokens_SN[slot, :count].tolist(), logp_SN[slot, :count].tolist())
            self._length[slot] += count
            self._pending[slot] = episode.ids[-1]
            stop = engine._automaton.stop(int(self._state[slot]))
            waits[slot] = episode.advance(stop, engine._tokenizer)
        return waits

    def _observe(self, waits: dict[int, Next]) -> dict[int, list[int]]:
        """Searches for those that asked, frees finished slots; returns the ids to prefill."""
        engine = self._engine
        began = time.perf_counter()
        asking = [slot for slot, wait in waits.items() if wait is Next.SEARCH]
        found = engine._retrieve([self._slots[slot].query for slot in asking]) if asking else []
        engine.stats["retrieval_seconds"] += time.perf_counter() - began
        engine.stats["searches"] += len(asking)
        passages_of = dict(zip(asking, found))
        appended = {}
        for slot, wait in waits.items():
            if wait in (Next.SEARCH, Next.CORRECTION):
                passages = passages_of.get(slot)
                observation = (
                    engine._correction if passages is None else engine._observation(passages)
                )
                wait = self._slots[slot].observe(observation, passages)
                appended[slot] = observation
                self._state[slot] = 0
            if wait is Next.NOTHING:
                self._slots[slot] = None
                appended.pop(slot, None)
        return appended

    def _extend(self, appended: dict[int, list[int]]) -> None:
        """Prefills new tokens: the pending one and all of `appended` but the last."""
        began = time.perf_counter()
        ids_of = {}
        for slot, ids in appended.items():
            # A fresh slot has nothing pending: its whole prompt is new.
            fresh = self._length[slot] == 0
            ids_of[slot] = ids[:-1] if fresh else [int(self._pending[slot]), *ids[:-1]]
            self._pending[slot] = ids[-1]
        longest = self._config.extend_buckets[-1]
        while any(ids_of.values()):
            self._extend_once({s: ids[:longest] for s, ids in ids_of.items() if ids})
            ids_of = {s: ids[longest:] for s, ids in ids_of.items()}
        self._engine.stats["extend_seconds"] += time.perf_counter() - began

    def _extend_once(self, ids_of: dict[int, list[int]]) -> None:
        slots = len(self._slots)
        # A quarter of the slots or all of them: few programs, little padding.
        rows = -(-slots // 4) if len(ids_of) <= -(-slots // 4) else slots
        most = max(map(len, ids_of.values()))
        columns = next(bucket for bucket in self._config.extend_buckets if bucket >= most)
        rows_R = np.full(rows, slots, np.int32)
        ids_RC = np.zeros((rows, columns), np.int32)
        positions_RC = np.full((rows, columns), self._config.max_context_tokens, np.int32)
        for row, (slot, ids) in enumerate(ids_of.items()):
            rows_R[row] = slot
            ids_RC[row, : len(ids)] = ids
            positions_RC[row, : len(ids)] = self._length[slot] + np.arange(len(ids))
            self._length[slot] += len(ids)
        self._cache = programs.extend(
            self._params, self._cache, rows_R, ids_RC, positions_RC, graph=self._engine._graph
        )
        self._engine.stats["prefilled_tokens"] += sum(map(len, ids_of.values()))


def as_metrics(stats: Mapping[str, float]) -> dict[str, float]:
    """The engine's totals as metrics, with rates."""
    seconds = max(stats["seconds"], 1e-9)
    return {f"rollout/{key}": value for key, value in stats.items()} | {
        "rollout/trajectories_per_second": stats["episodes"] / seconds,
        "rollout/tokens_per_second": stats["decoded_tokens"] / seconds,
    }

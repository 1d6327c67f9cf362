"""The rollout engine: batched episodes of think, search, read, answer.

The device keeps the KV cache, which survives the turns: only new tokens are ever prefilled, and
of a prompt only what no other slot holds. A slot whose episode is over takes the next question
at once; while some slots wait for a tool the others decode.

`Engine` joins two rooms: slots and programs, which see ids only, and the environment, which says
what an id means.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.data.questions import Question, as_question
from sr1_jax.environment import Environment, Observation, Trajectory
from sr1_jax.environment.episode import Episode, Rules
from sr1_jax.environment.pool import Answer, ToolPool
from sr1_jax.environment.reader import Reader
from sr1_jax.environment.watched import Watch, WatchedEpisode
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.serving import ServingParams, cache_bytes, cache_shape, serve
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.automaton import build_automaton
from sr1_jax.protocol.observations import render_text
from sr1_jax.protocol.tags import SEARCH, Tags
from sr1_jax.retrieval.base import Retriever
from sr1_jax.retrieval.hooks import at_step, counts_of, counts_since
from sr1_jax.rollout import programs
from sr1_jax.rollout.device_slots import DeviceSlots
from sr1_jax.rollout.episode_loop import EpisodeLoop
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.rollout.settings import check_config
from sr1_jax.sharding import make_mesh, named, place

# Told of a finished trajectory, with its question.
Finished = Callable[[Trajectory, Question], None]


class Engine:
    """Runs episodes of a policy in an environment.

    On several processes each runs its own questions on the slots of its own devices, and all
    call `run` at the same time.

    Args:
        model: the policy; `run(params=…)` replaces its parameters, as training does.
        tokenizer: of the policy.
        retriever: searched between segments, from several threads at once; may be None if no
            search is ever made (max_searches 0 and a prompt without passages), or with an
            environment.
        config: see `rollout.default_config`.
        environment: tools, prompt and reward; by default search alone, over the retriever.
        mesh: the device mesh; by default one of the first device alone.
        keeps_caches: whether what the slots hold outlives a run, for the next one with the same
            parameters: what its prompts share with those before is not prefilled again. Meanwhile
            cache and parameters in the layout of rollouts take their memory.

    Attributes:
        stats: totals of the last `run`: see `stats.as_metrics`.

    Raises:
        ValueError: settings that cannot work (see `settings.check_config`), or slots that do not
            divide over the mesh.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        retriever: Retriever | None,
        config: ml_collections.ConfigDict,
        *,
        environment: Environment | None = None,
        mesh: Mesh | None = None,
        keeps_caches: bool = False,
    ):
        check_config(config)
        if environment is None:
            environment = Environment.of_search(retriever, config)
        self._environment = environment
        self._config = config
        self._mesh = make_mesh(1, 1, 1, jax.local_devices()[:1]) if mesh is None else mesh
        self._layout = SlotLayout(self._mesh, config.slots, config.decode_sizes)
        self._decoder = model.config
        self._params = nnx.state(model)
        self._tokenizer = tokenizer
        searches = config.max_searches and environment.search in environment.tools
        if environment.search.retriever is None and (
            searches or environment.template.wants_information
        ):
            raise ValueError(
                "These settings search, but there is no retriever: give one, or set "
                "rollout.max_searches=0 and a template without {information}."
            )
        self._rules = Rules(
            tokenizer,
            config.max_searches,
            config.max_segment_tokens,
            config.max_context_tokens,
            environment.tags,
            {
                tag: options.max_calls
                for tag, options in environment.options.items()
                if options.max_calls is not None
            },
        )
        self._reader = None
        if environment.reader is not None:
            rules = dataclasses.replace(self._rules, max_calls=0)
            self._reader = Reader(environment.reader, rules, self._render)
            self._reader.check(config.max_observation_tokens)
        for tool in environment.called:
            # Refuses a budget that cannot hold the tags before anything is run.
            self._render(tool.tag, Observation(""))
        self._automaton = build_automaton(
            tokenizer.token_bytes, tokenizer.eos_ids, environment.tags.stop_tags
        )
        # The model may have more rows of logits than the tokenizer has ids; those add no text.
        states = np.arange(len(self._automaton.next_state), dtype=np.int32)
        table = np.repeat(states[:, None], model.config.vocab_size, axis=1)
        table[:, : tokenizer.vocab_size] = self._automaton.next_state
        self._next_state = place(table, named(self._mesh))
        self._keeps_caches = keeps_caches
        self._kept: DeviceSlots | None = None
        self._served: tuple[nnx.State, ServingParams] | None = None  # of these parameters
        self.stats: dict[str, float] = {}

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV cache on all devices together."""
        config = self._config
        shape = cache_shape(self._decoder, self._mesh)
        return cache_bytes(self._decoder, config.slots, config.max_context_tokens, **shape)

    @property
    def tags(self) -> Tags:
        """Of the tools that the policy may call."""
        return self._environment.tags

    def run(
        self,
        questions: Iterable[Any],
        seed: int = 0,
        samples: int = 1,
        *,
        step: int = 0,
        params: nnx.State | None = None,
        finished: Finished | None = None,
        skip: Collection[tuple[str, int]] = (),
        watch: Watch | None = None,
    ) -> list[Trajectory]:
        """Runs `samples` episodes a question and returns them question by question.

        A trajectory depends on (seed, step, question id, sample) and the parameters, not on the
        order of the questions, the number of slots, devices or processes, or how long searches
        take.

        Args:
            questions: dicts or objects with id, question, golden_answers. A question that comes
                again, as at the end of an epoch, gets further samples.
            seed: of the run.
            samples: episodes a question.
            step: of training, from 1 on; 0 for any other run.
            params: the policy's parameters, instead of those of the constructor.
            finished: called with each trajectory as soon as it is over, and its question; on the
                host, between two calls of the device, in any order. It is not yet rewarded: terms
                of the reward see all trajectories together.
            skip: (question id, sample) of episodes that are not run: others have their random
                streams all the same.
            watch: called with what each episode gets while it runs: new text, a call, what it is
                shown. On the host, between two calls of the device.

        Raises:
            ValueError: no question, two different ones with one id, or a prompt that leaves no
                room for an answer (unless rollout.long_prompts="skip"); names the question.
            RuntimeError: a tool failed as often as its options allow.
        """
        return self._rewarded(
            *self._roll_out(questions, seed, samples, step, params, finished, skip, watch)
        )

    def _rewarded(
        self, trajectories: Sequence[Trajectory], questions: Sequence[Question]
    ) -> list[Trajectory]:
        """The trajectories with what they earn, all of them scored together."""
        reward = self._environment.reward
        counted_before = counts_of(reward)
        rewarded = reward.score(trajectories, questions)
        self.stats |= counts_since(reward, counted_before)
        return rewarded

    def _roll_out(
        self,
        questions: Iterable[Any],
        seed: int,
        samples: int,
        step: int,
        params: nnx.State | None,
        finished: Finished | None = None,
        skip: Collection[tuple[str, int]] = (),
        watch: Watch | None = None,
    ) -> tuple[list[Trajectory], list[Question]]:
        """The trajectories of `run`, not yet rewarded, and the question of each."""
        self.stats = stats = collections.defaultdict(float)
        compiled, began = programs.compilations(), time.perf_counter()
        environment = self._environment
        retriever = environment.search.retriever
        at_step(retriever, step)
        # Of our search it is the retriever that counts.
        own = [tool for tool in environment.called if tool is not environment.search]
        counting = {SEARCH: retriever} | {tool.tag: tool for tool in own}
        counted_before = {tag: counts_of(each) for tag, each in counting.items()}
        pool = ToolPool(environment.called, self._render, environment.options)
        done: dict[Episode, Trajectory] = {}
        params = self._params if params is None else params

        def finish(episode: Episode) -> None:
            done[episode] = trajectory = episode.trajectory()
            if finished is not None:
                finished(trajectory, episode.question)

        try:
            episodes = self._episodes(
                [as_question(q) for q in questions], samples, pool, frozenset(skip), watch
            )
            slots = self._slots(params, seed, step)
            EpisodeLoop(
                slots,
                self._layout,
                pool,
                episodes,
                finish,
                automaton=self._automaton,
                config=self._config,
                stats=stats,
                reader=self._reader,
            ).play()
            self._keep(params, slots)
        finally:
            # Whatever happened, Ctrl-C too: no tool is called any more.
            pool.close()
            stats |= pool.stats
            for tag, before in counted_before.items():
                for name, count in counts_since(counting[tag], before).items():
                    stats[f"{tag}_{name}"] = count
        stats["seconds"] = time.perf_counter() - began
        stats["compilations"] = programs.compilations() - compiled
        stats["episodes"] = len(episodes)
        stats["cache_gib"] = self.cache_bytes / 2**30
        return [done[episode] for episode in episodes], [e.question for e in episodes]

    def fits(self, question: Any) -> bool:
        """Whether a question's prompt leaves room for an answer, whatever passages are in it."""
        template, information = self._environment.template, None
        if template.wants_information:
            information = [0] * self._config.max_observation_tokens
        prompt = template.render(self._tokenizer, as_question(question).question, information)
        return len(prompt) < self._rules.max_context_tokens

    def sure_to_fit_bytes(self) -> int:
        """Length in UTF-8 up to which every question's prompt leaves room; see `fits`. -1 where
        lengths do not tell."""
        information = self._config.max_observation_tokens
        return self._environment.template.sure_to_fit_bytes(
            self._tokenizer, self._rules.max_context_tokens - 1, information
        )

    def warm_up(self, params: nnx.State | None = None) -> int:
        """Compiles every program that a run may call; returns how many.

        Args:
            params: see `run`.
        """
        self.stats = collections.defaultdict(float)
        before = programs.compilations()
        params = self._params if params is None else params
        slots = self._slots(params, 0, 0)
        slots.warm_up()
        self._keep(params, slots)
        return programs.compilations() - before

    def prefill(self, question: Any, params: nnx.State | None = None) -> None:
        """Feeds a question's prompt to an engine that keeps caches: the next run need not feed what
        its prompts share with this one. Does not wait for the device.

        Args:
            question: see `run`.
            params: see `run`.
        """
        self.stats = collections.defaultdict(float)
        params = self._params if params is None else params
        template = self._environment.template
        information: list[int] | None = [] if template.wants_information else None
        prompt = template.render(self._tokenizer, as_question(question).question, information)
        slots = self._slots(params, 0, 0)
        slots.prefill(0, prompt)
        self._keep(params, slots)

    def _keep(self, params: nnx.State, slots: DeviceSlots) -> None:
        if self._keeps_caches:
            self._kept, self._served = slots, (params, slots.params)

    def _slots(self, params: nnx.State, seed: int, step: int) -> DeviceSlots:
        # A run that is broken off leaves no slots: what they hold is not known then.
        kept, self._kept = self._kept, None
        same = self._served is not None and self._served[0] is params
        seed_key = jax.random.fold_in(jax.random.key(seed), step)
        if kept is not None and same:
            kept.renew(seed_key, self.stats)
            return kept
        return DeviceSlots(
            self._decoder,
            self._served[1] if same else self._serve(params),
            self._config,
            self._layout,
            self._mesh,
            next_state=self._next_state,
            first_final=self._automaton.first_final,
            seed_key=seed_key,
            stats=self.stats,
        )

    def _serve(self, params: nnx.State) -> ServingParams:
        """Parameters in the layout of rollouts."""
        self._served = None  # those before make room
        began = time.perf_counter()
        served = serve(params, config=self._decoder, mesh=self._mesh, weights=self._config.weights)
        jax.block_until_ready(served)
        self.stats["reshard_seconds"] = time.perf_counter() - began
        return served

    def _episodes(
        self,
        questions: Sequence[Question],
        samples: int,
        pool: ToolPool,
        skip: Collection[tuple[str, int]],
        watch: Watch | None,
    ) -> list[Episode]:
        # One of several processes may have none, and still plays its part in the others' run.
        if not questions and jax.process_count() == 1:
            raise ValueError("There are no questions to run.")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}.")
        _check_ids(questions)
        information = self._information(questions, pool)
        kind = Episode if watch is None else functools.partial(WatchedEpisode, watch=watch)
        episodes = []
        first_sample: collections.Counter[str] = collections.Counter()
        for number, question in enumerate(questions):
            found = information.get(number)
            prompt = self._prompt(question, found.ids if found else None)
            start = first_sample[question.id]
            first_sample[question.id] += samples
            if prompt is None:
                self.stats["skipped_prompts"] += samples
                continue
            episodes += [
                kind(question, sample, prompt, self._rules, information=found)
                for sample in range(start, start + samples)
                if (question.id, sample) not in skip
            ]
        return episodes

    def _information(self, questions: Sequence[Question], pool: ToolPool) -> dict[int, Answer]:
        """The passages for each prompt, where the template has a place for them."""
        information: dict[int, Answer] = {}
        if self._environment.template.wants_information:
            for number, question in enumerate(questions):
                pool.submit(number, SEARCH, question.question)
            while pool.pending:
                information |= {answer.key: answer for answer in pool.poll(wait=1.0)}
        return information

    def _prompt(self, question: Question, information: list[int] | None) -> list[int] | None:
        """Ids of a prompt; None for one that is too long and to be skipped."""
        prompt = self._environment.template.render(self._tokenizer, question.question, information)
        if not prompt:
            raise ValueError(f"Question {question.id}: its prompt is empty.")
        if len(prompt) < self._rules.max_context_tokens:
            return prompt
        if self._config.long_prompts == "skip":
            return None
        raise ValueError(
            f"Question {question.id}: its prompt has {len(prompt)} tokens, which leaves no room "
            f"for an answer in rollout.max_context_tokens={self._rules.max_context_tokens}; raise "
            'that, shorten the question, or set rollout.long_prompts="skip".'
        )

    def _render(self, tag: str, observation: Observation) -> list[int]:
        """Ids that show what a tool answered."""
        return render_text(
            observation.text,
            self._environment.escaped.of(tag).observation_tag,
            self._tokenizer,
            self._config.max_observation_tokens,
            self._environment.escaped,
        )


def _check_ids(questions: Sequence[Question]) -> None:
    """Refuses an id that stands for two questions."""
    text_of: dict[str, str] = {}
    for question in questions:
        if text_of.setdefault(question.id, question.question) != question.question:
            raise ValueError(
                f"Question id {question.id!r} stands for two different questions; ids must be "
                "unique, by convention source:split:index."
            )

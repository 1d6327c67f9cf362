"""What a policy is shown before reinforcement learning in a fictional world: scripted traces that
teach the protocol, but use it badly."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.methods import templates
from sr1_jax.models.small_tokenizer import train_small_tokenizer
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.observations import render_observation
from sr1_jax.protocol.prompts import PromptTemplate, load_template
from sr1_jax.retrieval import Retriever, for_other_corpus, open_retriever
from sr1_jax.training.phases import Phase, phases_of
from sr1_jax.training.supervised import Example
from sr1_jax.world.facts import (
    World,
    build_world,
    one_hop_questions,
    two_hop_questions,
    write_corpus,
)
from sr1_jax.world.traces import MODES, Trace, TraceMix, TraceWriter, scripted_ceiling

_TOKENIZER_TRACES = 2000


class WorldExamples:
    """Examples from a world and, with warm_start.worlds above 1, from others like it.

    Nothing is drawn before it is asked for.

    Args:
        config: of the run.
        world: of the run.
        retriever: over its passages.
        dev: its development questions.

    Raises:
        ValueError: warm_start.phases has a mix that `TraceMix` does not know.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        world: World,
        retriever: Retriever,
        dev: Sequence[Question],
    ):
        for phase in phases_of(config.warm_start.phases):
            _mix_of(phase)
        self._config = config
        self._world, self._retriever, self._dev = world, retriever, dev
        self._writers: list[tuple[TraceWriter, dict[int, list[Question]]]] = []

    def tokenizer(self) -> Tokenizer:
        """A tokenizer trained on the corpora, the training questions and some traces."""
        worlds = [self._world, *(writer.world for writer, _ in self._sources())]
        texts = [f"Doc 1(Title: {f.subject}) {f.passage}\n" for w in worlds for f in w.facts]
        for _, pools in self._sources():
            texts += [q.question for pool in pools.values() for q in pool]
        for trace in self._traces(TraceMix(), _TOKENIZER_TRACES, self._config.seed):
            texts += [segment for segment in trace.segments if isinstance(segment, str)]
        template_texts = [
            text for name in self._templates().values() for text in load_template(name).parts[::2]
        ]
        # Tags and templates must become tokens though the corpus does not have them.
        texts += [*template_texts, "\n<information>\n", "</information>\n"] * _TOKENIZER_TRACES
        return train_small_tokenizer(texts, self._config.model.vocab_size)

    def ceiling(self) -> float:
        """Exact match of a scripted perfect searcher on the development questions."""
        passages = self._config.rollout.passages
        return scripted_ceiling(
            self._world, self._dev, lambda query: self._retriever.search([query], passages)[0]
        )

    def examples(self, phase: Phase, tokenizer: Tokenizer, seed: int) -> list[Example]:
        """Encoded traces; the phase's mix is that of `TraceMix`."""
        traces = self._traces(_mix_of(phase), phase.traces, seed)
        if phase.only_correct:
            traces = [trace for trace in traces if trace.correct]
        prompts = {mode: load_template(name) for mode, name in self._templates().items()}
        budget = self._config.rollout.max_observation_tokens
        return [
            encode_trace(trace, prompts, tokenizer, budget, arbitrary=phase.arbitrary)
            for trace in traces
        ]

    def _templates(self) -> dict[str, str]:
        """Of the prompts that traces answer: those of other methods must not change the
        tokenizer."""
        named = templates(self._config)
        return {mode: named[mode] for mode in MODES}

    def _sources(self) -> list[tuple[TraceWriter, dict[int, list[Question]]]]:
        """A writer for each world, and its training questions by number of hops."""
        if self._writers:
            return self._writers
        config = self._config
        worlds = [(self._world, self._retriever)]
        if config.warm_start.worlds > 1:
            worlds = [_other_world(config, number) for number in range(config.warm_start.worlds)]
        for world, retriever in worlds:
            rng = random.Random(config.seed)
            one_hop = list(one_hop_questions(world, "train", rng))
            pools = {1: one_hop, 2: list(two_hop_questions(world, "train", rng))}
            guesses = [question.golden_answers[0] for question in one_hop]
            writer = TraceWriter(world, retriever, config.rollout.passages, guesses)
            self._writers.append((writer, pools))
        return self._writers

    def _traces(self, mix: TraceMix, count: int, seed: int) -> list[Trace]:
        """`count` traces, as many from each world."""
        sources = self._sources()
        each = -(-count // len(sources))
        traces = []
        for number, (writer, pools) in enumerate(sources):
            traces += writer.write(pools, mix, each, seed * 1000 + number)
        return traces[:count]


def _mix_of(phase: Phase) -> TraceMix:
    known = [field.name for field in dataclasses.fields(TraceMix)]
    for name, share in phase.mix.items():
        if name not in known:
            raise ValueError(
                f"warm_start.phases, {phase.name!r}: its mix has no {name!r}; the keys are "
                f"{', '.join(known)}."
            )
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(
                f"warm_start.phases, {phase.name!r}: {name} of its mix must lie in [0, 1], not "
                f"{share!r}."
            )
    return TraceMix(**phase.mix)


def encode_trace(
    trace: Trace,
    templates: Mapping[str, PromptTemplate],
    tokenizer: Tokenizer,
    max_observation_tokens: int,
    *,
    arbitrary: bool = True,
) -> Example:
    """A trace as the rollout engine would have left it.

    Args:
        trace: what to encode.
        templates: by mode of the trace.
        tokenizer: of the policy.
        max_observation_tokens: as in rollouts.
        arbitrary: False gives what was drawn at random the mask 0: it is read, not learned.
    """
    segments = list(trace.segments)
    information, first = None, 0
    if templates[trace.mode].wants_information:
        information = render_observation(segments.pop(0), tokenizer, max_observation_tokens)
        first = 1
    ids = templates[trace.mode].render(tokenizer, trace.question.question, information)
    mask = [0] * len(ids)
    for number, segment in enumerate(segments, start=first):
        if isinstance(segment, str):
            new = tokenizer.encode(segment)
        else:
            new = render_observation(segment, tokenizer, max_observation_tokens)
        ids = ids + new
        learned = isinstance(segment, str) and (arbitrary or number not in trace.arbitrary)
        mask += [int(learned)] * len(new)
    return Example(ids, mask)


def _other_world(config: ml_collections.ConfigDict, number: int) -> tuple[World, Retriever]:
    """A world of other training entities and other facts, behind a retriever of its own."""
    draw = (config.seed + 1) * 10_007 + number
    world = build_world(
        config.seed, people=config.data.world_people, facts_seed=draw, names_seed=draw
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(world, corpus)
        # Without a folder for an index it is kept in memory: the corpus goes with its folder.
        return world, open_retriever(for_other_corpus(config.retrieval), corpus)

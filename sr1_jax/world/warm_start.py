"""What a policy is shown before reinforcement learning in a fictional world: scripted traces that
teach the protocol, but use it badly."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.methods import templates
from sr1_jax.models.small_tokenizer import train_small_tokenizer
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.observations import render_observation, render_text
from sr1_jax.protocol.prompts import PromptTemplate, load_template
from sr1_jax.protocol.tags import SEARCH_TAGS
from sr1_jax.retrieval import Retriever, for_other_corpus, open_retriever
from sr1_jax.training.phases import Phase, phases_of
from sr1_jax.training.supervised import Example
from sr1_jax.world.facts import HasPassages, write_corpus
from sr1_jax.world.kinds import WORLDS, TraceSource
from sr1_jax.world.traces import Note, Trace

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
        ValueError: warm_start.phases has a mix that traces of the world do not know.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        world: HasPassages,
        retriever: Retriever,
        dev: Sequence[Question],
    ):
        self._kind = WORLDS[config.data.world]
        for phase in phases_of(config.warm_start.phases):
            _mix_of(phase, self._kind.mix)
        self._config = config
        self._world, self._retriever, self._dev = world, retriever, dev
        self._sources: list[tuple[HasPassages, TraceSource]] = []

    def tokenizer(self) -> Tokenizer:
        """A tokenizer trained on the corpora, the training questions and some traces."""
        worlds = [self._world, *(world for world, _ in self._writers())]
        texts = [
            f"Doc 1(Title: {title}) {text}\n"
            for world in worlds
            for title, text in world.titled_passages()
        ]
        for _, source in self._writers():
            texts += [question.question for question in source.questions]
        for trace in self._traces(self._kind.mix(), _TOKENIZER_TRACES, self._config.seed):
            texts += [segment for segment in trace.segments if isinstance(segment, str)]
            texts += [segment.text for segment in trace.segments if isinstance(segment, Note)]
        template_texts = [text for prompt in self._prompts().values() for text in prompt.parts[::2]]
        # Tags and templates must become tokens though the corpus does not have them.
        texts += [*template_texts, "\n<information>\n", "</information>\n"] * _TOKENIZER_TRACES
        return train_small_tokenizer(texts, self._config.model.vocab_size)

    def ceiling(self) -> float:
        """Exact match of a scripted perfect searcher on the development questions."""
        passages = self._config.rollout.passages
        return self._kind.ceiling(
            self._world, self._dev, lambda query: self._retriever.search([query], passages)[0]
        )

    def examples(self, phase: Phase, tokenizer: Tokenizer, seed: int) -> list[Example]:
        """Encoded traces; the phase's mix is what traces of the world know."""
        traces = self._traces(_mix_of(phase, self._kind.mix), phase.traces, seed)
        if phase.only_correct:
            traces = [trace for trace in traces if trace.correct]
        prompts = self._prompts()
        budget = self._config.rollout.max_observation_tokens
        return [
            encode_trace(trace, prompts, tokenizer, budget, arbitrary=phase.arbitrary)
            for trace in traces
        ]

    def _prompts(self) -> dict[str, PromptTemplate]:
        """The template of each mode of a trace; those of other methods must not change the
        tokenizer."""
        modes = self._kind.modes
        names = {mode: self._config.protocol[f"{mode}_template"] for mode in modes}
        names |= templates(self._config)  # which knows of protocol.template_path
        return {mode: load_template(names[mode], reader=mode == "reader") for mode in modes}

    def _writers(self) -> list[tuple[HasPassages, TraceSource]]:
        """Each world and what writes traces about it."""
        if self._sources:
            return self._sources
        config = self._config
        worlds = [(self._world, self._retriever)]
        if config.warm_start.worlds > 1:
            worlds = [_other_world(config, number) for number in range(config.warm_start.worlds)]
        for world, retriever in worlds:
            source = self._kind.source(world, retriever, config.rollout.passages, config.seed)
            self._sources.append((world, source))
        return self._sources

    def _traces(self, mix: Any, count: int, seed: int) -> list[Trace]:
        """`count` traces, as many from each world."""
        sources = self._writers()
        each = -(-count // len(sources))
        traces = []
        for number, (_, source) in enumerate(sources):
            traces += source.write(mix, each, seed * 1000 + number)
        return traces[:count]


def _mix_of(phase: Phase, mix: type) -> Any:
    """The mix of a phase as the dataclass that traces of the world take."""
    known = [field.name for field in dataclasses.fields(mix)]
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
    return mix(**phase.mix)


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
    ids = templates[trace.mode].render(
        tokenizer, trace.question.question, information, query=trace.query
    )
    mask = [0] * len(ids)
    for number, segment in enumerate(segments, start=first):
        if isinstance(segment, str):
            new = tokenizer.encode(segment)
        elif isinstance(segment, Note):
            tag = SEARCH_TAGS.tools[0].observation_tag
            new = render_text(segment.text, tag, tokenizer, max_observation_tokens)
        else:
            new = render_observation(segment, tokenizer, max_observation_tokens)
        ids = ids + new
        learned = isinstance(segment, str) and (arbitrary or number not in trace.arbitrary)
        mask += [int(learned)] * len(new)
    return Example(ids, mask)


def _other_world(config: ml_collections.ConfigDict, number: int) -> tuple[HasPassages, Retriever]:
    """A world of other training entities and other facts, behind a retriever of its own."""
    draw = (config.seed + 1) * 10_007 + number
    world = WORLDS[config.data.world].build(
        config.seed, people=config.data.world_people, facts_seed=draw, names_seed=draw
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(world, corpus)
        # Without a folder for an index it is kept in memory: the corpus goes with its folder.
        return world, open_retriever(for_other_corpus(config.retrieval), corpus)

"""The supervised warm start of the fictional world: from nothing to a policy that knows the
protocol but uses it badly."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.data.questions import Question
from sr1_jax.evaluation.evaluator import Evaluator
from sr1_jax.evaluation.metrics import Live
from sr1_jax.models.decoder import Decoder
from sr1_jax.models.small_tokenizer import train_small_tokenizer
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.prompts import load_template
from sr1_jax.retrieval import BM25Retriever
from sr1_jax.training.policies import scratch_config
from sr1_jax.training.settings import templates
from sr1_jax.training.supervised import SupervisedTrainer, encode_trace, supervised_batches
from sr1_jax.training.task import Task
from sr1_jax.world.facts import (
    World,
    build_world,
    one_hop_questions,
    two_hop_questions,
    write_corpus,
)
from sr1_jax.world.traces import Trace, TraceMix, TraceWriter, scripted_ceiling

_TOKENIZER_TRACES = 2000


class WarmStart:
    """Writes traces and trains on them.

    Args:
        config: of the run.
        task: a fictional world.

    Raises:
        ValueError: the task is no fictional world; real questions have no scripted traces.
    """

    def __init__(self, config: ml_collections.ConfigDict, task: Task):
        if task.world is None:
            raise ValueError(
                "A supervised warm start needs the fictional world (data.world_people): real "
                "questions have no scripted traces. Set base.path instead."
            )
        self._config = config
        self._task = task
        worlds = [(task.world, task.retriever)]
        if config.warm_start.worlds > 1:
            worlds = [_other_world(config, number) for number in range(config.warm_start.worlds)]
        self._sources = []
        for world, retriever in worlds:
            rng = random.Random(config.seed)
            one_hop = list(one_hop_questions(world, "train", rng))
            pools = {1: one_hop, 2: list(two_hop_questions(world, "train", rng))}
            guesses = [question.golden_answers[0] for question in one_hop]
            writer = TraceWriter(world, retriever, config.rollout.passages, guesses)
            self._sources.append((writer, pools))

    def tokenizer(self) -> Tokenizer:
        """A tokenizer trained on the corpus, the training questions and some traces."""
        worlds = [self._task.world, *(writer.world for writer, _ in self._sources)]
        texts = [f"Doc 1(Title: {f.subject}) {f.passage}\n" for w in worlds for f in w.facts]
        for _, pools in self._sources:
            texts += [q.question for pool in pools.values() for q in pool]
        for trace in self._traces(TraceMix(), _TOKENIZER_TRACES, self._config.seed):
            texts += [segment for segment in trace.segments if isinstance(segment, str)]
        template_texts = [
            text
            for name in templates(self._config).values()
            for text in load_template(name).parts[::2]
        ]
        # Tags and templates must become tokens though the corpus does not have them.
        texts += [*template_texts, "\n<information>\n", "</information>\n"] * _TOKENIZER_TRACES
        return train_small_tokenizer(texts, self._config.model.vocab_size)

    def ceiling(self) -> float:
        """Exact match of a scripted perfect searcher on the held-out questions."""
        search = self._task.retriever.search
        passages = self._config.rollout.passages
        dev = self._task.dev["heldout"]
        return scripted_ceiling(self._task.world, dev, lambda query: search([query], passages)[0])

    def _traces(self, mix: TraceMix, count: int, seed: int) -> list[Trace]:
        """`count` traces, as many from each world."""
        each = -(-count // len(self._sources))
        traces = []
        for number, (writer, pools) in enumerate(self._sources):
            traces += writer.write(pools, mix, each, seed * 1000 + number)
        return traces[:count]

    def examples(self, phase: ml_collections.ConfigDict, tokenizer: Tokenizer, seed: int):
        """Encoded traces of a phase."""
        traces = self._traces(TraceMix(**phase["mix"]), phase["traces"], seed)
        if phase.get("only_correct"):
            traces = [trace for trace in traces if trace.correct]
        prompts = {mode: load_template(name) for mode, name in templates(self._config).items()}
        budget = self._config.rollout.max_observation_tokens
        arbitrary = phase.get("arbitrary", True)
        return [
            encode_trace(trace, prompts, tokenizer, budget, arbitrary=arbitrary) for trace in traces
        ]

    def train(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        mesh: Mesh,
        evaluator: Evaluator,
        dev: list[Question],
    ) -> tuple[nnx.State, list[dict[str, Any]]]:
        """Runs all phases.

        Returns:
            The parameters at the end, and the scores of every checkpoint on the way.
        """
        config = self._config.warm_start
        graph, params = nnx.split(model)
        checkpoints = []
        for number, phase in enumerate(config.phases):
            steps = phase["steps"]
            trainer = SupervisedTrainer(
                nnx.merge(graph, params),
                mesh,
                schedule=optax.warmup_cosine_decay_schedule(
                    0.0, phase["learning_rate"], min(30, steps // 4), steps,
                    phase["learning_rate"] * phase.get("final_rate", 0.1),
                ),
                context_weight=phase.get("context_weight", 0.0),
            )  # fmt: skip
            batches = supervised_batches(
                self.examples(phase, tokenizer, self._config.seed * 100 + number),
                batch=config.batch,
                buckets=phase.get("length_buckets", config.length_buckets),
                pad_id=tokenizer.pad_id,
                seed=self._config.seed,
            )
            live = Live(f"warm start: {phase['name']}", steps)
            for step in range(1, steps + 1):
                loss = trainer.step(*next(batches))
                if step % 10 == 0 or step == steps:
                    live.update(step, loss=float(loss))
                if dev and (step in phase.get("evaluate_at", ()) or step == steps):
                    scores, _ = evaluator.run(trainer.state.params, dev)
                    checkpoints.append({"phase": phase["name"], "step": step} | scores)
            live.close()
            params = trainer.state.params
        return params, checkpoints


def _other_world(config: ml_collections.ConfigDict, number: int) -> tuple[World, BM25Retriever]:
    """A world of other training entities and other facts, behind a retriever of its own."""
    draw = (config.seed + 1) * 10_007 + number
    world = build_world(
        config.seed, people=config.data.world_people, facts_seed=draw, names_seed=draw
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(world, corpus)
        index = Path(folder) / "index"
        BM25Retriever.build(corpus, index, **config.retrieval.to_dict())
        # Read into memory: the files go with the folder.
        return world, BM25Retriever.load(index, mmap=False)


def scratch_model(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> Decoder:
    """A small decoder with random parameters."""
    return Decoder(scratch_config(config, tokenizer.vocab_size), rngs=nnx.Rngs(config.seed))

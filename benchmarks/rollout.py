"""The rollout engine against other ways to run the same episodes, alternating in one call.

    python benchmarks/rollout.py turns [--transformers]   ours against a barrier a turn, with the
                                                          whole context prefilled again, on the
                                                          same model and kernels; and against a
                                                          loop of transformers' generate
    python benchmarks/rollout.py latency [--processes=2]  how long nothing decodes while searches
                                [--index=DIR]             take 200 ms, or a dense index on the same
                                                          devices is searched, on one process or
                                                          on several in lockstep
    python benchmarks/rollout.py deterministic            what it costs to take what searches find
                                                          by logical time
    python benchmarks/rollout.py tunix --python=FILE      single-turn generation against Tunix's
                                                          sampler in an environment of its own

Weights are random and what is sampled means nothing, so episodes follow a script: the number of
turns and the length of each segment are drawn once, and all sides write and read the same number
of tokens. Everything else is the engine's own code. Prints medians, ratios and the load of the
machine.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import processes
from byte_tokenizer import EOS_ID, byte_backend
from flax import nnx
from timing import Worker, alternate

from sr1_jax.environment.episode import Episode, Next
from sr1_jax.models import Decoder, DecoderConfig, Tokenizer
from sr1_jax.retrieval.base import Passage
from sr1_jax.retrieval.dense import open_as_built
from sr1_jax.rollout import Engine, default_config
from sr1_jax.rollout.stats import as_metrics
from sr1_jax.sharding import make_mesh

SMOLLM2 = DecoderConfig(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, ff_width=1536,
    rope_theta=100_000.0, norm_eps=1e-5,
)  # fmt: skip
QWEN2_SMALL = DecoderConfig(
    vocab_size=8192, width=384, layers=8, heads=6, kv_heads=2, head_dim=64, ff_width=1024,
    rope_theta=1e6, qkv_bias=True,
)  # fmt: skip


class ScriptedEpisode(Episode):
    """An episode whose segments have given lengths; after each but the last comes a search."""

    def __init__(self, question, sample, prompt, rules, script):
        super().__init__(question, sample, prompt, rules)
        self._script = script

    @property
    def tokens_left(self) -> int:
        return self._script[len(self.segments) - 1] - len(self.segments[-1])

    def advance(self, stop) -> Next:
        if self.tokens_left:
            return Next.POLICY
        if len(self.segments) == len(self._script):
            return self._finish("answered")
        self.tag, self.request = "search", f"{self.question.id} {len(self.segments)}"
        return Next.CALL


class ScriptedEngine(Engine):
    """The engine with scripted episodes and observations of one length."""

    def __init__(self, *arguments, prompts, scripts, observation, **settings):
        self._prompts, self._scripts, self._fixed_observation = prompts, scripts, observation
        super().__init__(*arguments, **settings)

    def _episodes(self, questions, samples, pool, skip=(), watch=None):
        return [
            ScriptedEpisode(question, 0, prompt, self._rules, script)
            for question, prompt, script in zip(questions, self._prompts, self._scripts)
        ]

    def _render(self, tag, observation):
        return self._fixed_observation


class SlowRetriever:
    """Finds a passage for anything, after `seconds`, give or take up to `spread`."""

    def __init__(self, seconds: float = 0.0, spread: float = 0.0):
        self._seconds, self._spread, self._random = seconds, spread, random.Random(0)

    def search(self, queries, k):
        time.sleep(self._seconds + self._random.uniform(-self._spread, self._spread))
        return [[Passage(query, "", query, 1.0)] for query in queries]


def any_tokenizer() -> Tokenizer:
    """Bytes: nothing is encoded but tags, and nothing that is sampled ends a segment."""
    return Tokenizer(byte_backend(), eos_ids=[EOS_ID], pad_id=0)


def workload(args, vocab_size: int):
    """Prompts that begin alike, and scripts of 2 to 4 turns, whose lengths are log-normal."""
    rng = np.random.default_rng(args.seed)
    low = 300  # past the byte tokens, so that nothing reads as a tag
    system = rng.integers(low, vocab_size, args.system).tolist()
    prompts = [
        system + rng.integers(low, vocab_size, args.question).tolist() for _ in range(args.episodes)
    ]
    median, spread = args.segment
    scripts = []
    for _ in range(args.episodes):
        lengths = median * np.exp(spread * rng.normal(size=rng.integers(2, 5)))
        scripts.append(np.clip(lengths, 8, 192).astype(int).tolist())
    return prompts, scripts, rng.integers(low, vocab_size, args.observation).tolist()


def scripted_engine(
    args, config: DecoderConfig, *, slots: int, buckets: tuple[int, ...], retriever=None,
    decode_sizes: int = 0, mesh=None, deterministic: bool = False,
) -> ScriptedEngine:  # fmt: skip
    prompts, scripts, observation = workload(args, config.vocab_size)
    longest = max(
        len(prompt) + sum(script) + (len(script) - 1) * len(observation)
        for prompt, script in zip(prompts, scripts)
    )
    rollout = default_config()
    rollout.update(
        slots=slots,
        max_searches=4,
        max_context_tokens=longest + 1,
        max_segment_tokens=max(map(max, scripts)),
        decode_steps=args.decode_steps,
        decode_sizes=decode_sizes,
        extend_buckets=buckets,
        deterministic=deterministic,
    )
    return ScriptedEngine(
        Decoder(config, rngs=nnx.Rngs(0)),
        any_tokenizer(),
        SlowRetriever() if retriever is None else retriever,
        rollout,
        prompts=prompts,
        scripts=scripts,
        observation=observation,
        mesh=mesh,
    )


def questions_of(engine: ScriptedEngine):
    return [
        {"id": f"q{number}", "question": "?", "golden_answers": ["x"]}
        for number in range(len(engine._prompts))
    ]


def run_ours(engine: ScriptedEngine) -> int:
    return sum(int(t.mask.sum()) for t in engine.run(questions_of(engine)))


def run_barrier(engine: ScriptedEngine) -> int:
    """All episodes turn by turn: prefill every context from the start, decode until the last has
    stopped, search for all."""
    episodes = engine._episodes([_Question(q["id"]) for q in questions_of(engine)], 1, None)
    slots = engine._slots(engine._params, 0, 0)
    places = list(range(engine._layout.slots))
    for start in range(0, len(episodes), len(places)):
        group = dict(zip(places, episodes[start : start + len(places)]))
        while group:
            for slot, episode in group.items():
                slots.restart(slot, episode.stream, episode.ids, 0)
            slots.extend({slot: episode.ids[:-1] for slot, episode in group.items()})
            while True:
                left_S = np.zeros(len(places), np.int32)
                for slot, episode in group.items():
                    left_S[slot] = episode.tokens_left
                if not left_S.any():
                    break
                decoded = slots.read(slots.decode(left_S, 0))
                for slot, episode in group.items():
                    size = decoded.count_S[slot]
                    episode.add_sampled(
                        decoded.tokens_SN[slot, :size].tolist(),
                        decoded.logp_SN[slot, :size].tolist(),
                    )
            for slot, episode in list(group.items()):
                if episode.advance(None) is Next.NOTHING:
                    del group[slot]
                else:
                    (observation,) = engine._environment.search.call([episode.request])
                    episode.answered(observation, engine._fixed_observation)
    return sum(sum(episode.mask) for episode in episodes)


class _Question:
    def __init__(self, name: str):
        self.id, self.question, self.golden_answers = name, "?", ["x"]


def transformers_side(config: DecoderConfig, engine: ScriptedEngine) -> Callable[[], int]:
    """The same turns by `generate`, once a turn over the contexts so far, padded on the left."""
    import torch
    import transformers

    shape = transformers.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
        intermediate_size=config.ff_width, rope_theta=config.rope_theta, tie_word_embeddings=True,
        max_position_embeddings=8192,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(shape).to(torch.float32).eval()
    settings = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=None
    )

    def run() -> int:
        sampled = 0
        for start in range(0, len(engine._prompts), engine._layout.slots):
            part = slice(start, start + engine._layout.slots)
            contexts = [list(prompt) for prompt in engine._prompts[part]]
            scripts = engine._scripts[part]
            for turn in range(max(map(len, scripts))):
                rows = [row for row, script in enumerate(scripts) if len(script) > turn]
                new = max(scripts[row][turn] for row in rows)
                longest = max(len(contexts[row]) for row in rows)
                ids = torch.zeros((len(rows), longest), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for number, row in enumerate(rows):
                    ids[number, longest - len(contexts[row]) :] = torch.tensor(contexts[row])
                    mask[number, longest - len(contexts[row]) :] = 1
                with torch.no_grad():
                    out = model.generate(
                        ids, attention_mask=mask, generation_config=settings, max_new_tokens=new
                    )
                for number, row in enumerate(rows):
                    written = scripts[row][turn]
                    contexts[row] += out[number, longest : longest + written].tolist()
                    contexts[row] += engine._fixed_observation
                    sampled += written
        return sampled

    return run


def turns(args) -> None:
    config = _shape(SMOLLM2, args)
    # Each side has buckets that suit what it prefills: questions and observations, or contexts.
    engine = scripted_engine(args, config, slots=args.slots, buckets=_ours(args))
    # The others have the whole batch in one piece, and decode it to its slowest member.
    whole = scripted_engine(
        args, config, slots=args.episodes, buckets=(32, 64, 128, 256), decode_sizes=1
    )
    sides = {
        "ours": lambda: run_ours(engine),
        "barrier, whole contexts again": lambda: run_barrier(whole),
    }
    if args.transformers:
        sides["transformers generate"] = transformers_side(config, whole)
    for each in (engine, whole):
        each.warm_up()
    print("compiled", flush=True)
    alternate(sides, args.runs, "sampled", trajectories=args.episodes)
    metrics = as_metrics(engine.stats)
    for key in ("occupancy", "busy_occupancy", "decoded_tokens", "prefilled_tokens",
                "extend_positions", "forked_tokens", "decode_calls", "host_seconds",
                "decode_seconds", "extend_seconds", "tool_wait_seconds", "reshard_seconds",
                "compilations", "cache_gib"):  # fmt: skip
        print(f"  {key} {metrics.get(f'rollout/{key}', 0.0):.4g}")


def latency(args) -> None:
    if not processes.joined(args):
        return
    retriever, searches = SlowRetriever(args.seconds), f"searches of {args.seconds * 1e3:.0f} ms"
    if args.index:
        retriever = open_as_built(args.index)
        searches = f"dense searches of {len(retriever):,} passages, three each"
    engine = scripted_engine(
        args,
        _shape(SMOLLM2, args),
        slots=args.slots * args.processes,
        buckets=_ours(args),
        retriever=retriever,
        mesh=make_mesh(-1, 1, 1) if args.processes > 1 else None,
    )
    engine.warm_up()
    print(
        f"{args.processes} processes with {args.episodes} episodes and {args.slots} slots each, "
        f"{searches}"
    )
    for _ in range(args.runs):
        run_ours(engine)
        stats, shares = engine.stats, []
        for what, key in (
            ("for want of a search", "tool_wait_seconds"),
            ("while the host was at work", "host_seconds"),
            ("(prefilling in that", "extend_seconds"),
        ):
            shares.append(f"{what} {stats[key] / stats['seconds']:.2%}")
        print(
            f"{stats['seconds']:.1f} s, {stats['decode_calls']:.0f} decode calls; nothing decoded "
            f"{', '.join(shares)}); occupancy while questions waited "
            f"{as_metrics(stats).get('rollout/busy_occupancy', float('nan')):.3f}",
            flush=True,
        )


def deterministic(args) -> None:
    """The same episodes with and without rollout.deterministic; searches take random times."""
    engines = {}
    for name, fixed in (("by the clock", False), ("deterministic", True)):
        engines[name] = scripted_engine(
            args,
            _shape(SMOLLM2, args),
            slots=args.slots,
            buckets=_ours(args),
            retriever=SlowRetriever(args.seconds, spread=args.seconds),
            deterministic=fixed,
        )
        engines[name].warm_up()
    sides = {name: functools.partial(run_ours, engine) for name, engine in engines.items()}
    alternate(sides, args.runs, "sampled", trajectories=args.episodes)
    for name, engine in engines.items():
        stats = engine.stats
        print(
            f"{name}: nothing decoded for want of a search "
            f"{stats['tool_wait_seconds'] / stats['seconds']:.2%} of the last run"
        )


def tunix(args) -> None:
    """Ours and Tunix's sampler: the same shape, prompts and number of tokens."""
    config = _shape(QWEN2_SMALL, args)
    rollout = default_config()
    rollout.update(
        slots=args.batch,
        max_searches=0,
        max_context_tokens=args.prompt + args.new,
        max_segment_tokens=args.new,
        decode_steps=args.new,
        extend_buckets=(args.prompt,),
    )
    rng = np.random.default_rng(args.seed)
    prompts = rng.integers(300, config.vocab_size, (args.batch, args.prompt)).tolist()
    engine = ScriptedEngine(
        Decoder(config, rngs=nnx.Rngs(0)), any_tokenizer(), None, rollout,
        prompts=prompts, scripts=[[args.new]] * args.batch, observation=[],
    )  # fmt: skip
    engine.warm_up()
    shape = {name: getattr(config, name) for name in vars(QWEN2_SMALL)}
    request = {"shape": shape, "prompts": prompts, "new": args.new}
    with Worker(args.python, "tunix_sampler.py", request) as worker:
        worker.ask()  # compiles
        sides = {"ours": lambda: run_ours(engine), "tunix": lambda: worker.ask()["tokens"]}
        alternate(sides, args.runs, "sampled", sequences=args.batch)


def _ours(args) -> tuple[int, ...]:
    """Rests of prompts, and whole observations with the token before them."""
    return (args.question + 8, args.observation + 8)


def _shape(config: DecoderConfig, args) -> DecoderConfig:
    return DecoderConfig(**vars(config) | ({"layers": args.layers} if args.layers else {}))


COMMANDS = {command.__name__: command for command in (turns, latency, deterministic, tunix)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=tuple(COMMANDS))
    parser.add_argument("--transformers", action="store_true", help="also time transformers")
    parser.add_argument("--python", help="interpreter of an environment with google-tunix")
    parser.add_argument(
        "--segment", type=float, nargs=2, default=(32, 0.8),
        help="median of the tokens a segment has, and standard deviation of their logarithm",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=0.2, help="a search takes, for latency")
    parser.add_argument("--index", type=Path, help="for latency: a dense index, searched instead")
    parser.add_argument("--layers", type=int, default=0, help="instead of those of the shape")
    for name, default in dict(
        episodes=64, slots=32, system=160, question=24, observation=160, decode_steps=16,
        batch=32, prompt=128, new=128, runs=3, seed=0,
    ).items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    processes.define(parser)
    args = parser.parse_args()
    if args.what == "tunix" and not args.python:
        parser.error("tunix needs --python, an interpreter of an environment with google-tunix.")
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    COMMANDS[args.what](args)


if __name__ == "__main__":
    main()

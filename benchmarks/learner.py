"""Our updates against other learners' on the same model and batch, alternating in one call.

    python benchmarks/learner.py tunix --python=FILE [--batch=search]
    python benchmarks/learner.py torch [--batch=search]
    python benchmarks/learner.py buckets --batch=search
    python benchmarks/learner.py shared --batch=search --alike

    tunix   GRPO by Tunix's learner, in an environment of its own. Each step of both: log-probs of
            the reference, group-relative advantages, gradients of the clipped loss with a
            KL term in it, clipping, AdamW. Neither computes log-probs of the old policy: ours
            has those of the sampler, Tunix takes those of the update itself.
    torch   PPO in plain PyTorch (`torch_ppo`), in float32. Each step of both: log-probs of the
            old policy and of the reference, values, advantages, gradients of policy and critic,
            clipping, AdamW.
    buckets GRPO by our learner with packed rows, and by our learner with length buckets.
    shared  GRPO by our learner with packed rows that hold once what the samples of a question start
            with, and with plain packed rows.

Nothing is sampled. A "fixed" batch is 32 sequences of 128 + 128 tokens; a "search" batch has
turns of log-normal lengths and observations between them, which are not trained on: ours and
PyTorch read them in length buckets, Tunix pads all to the longest. With --alike the four samples of
a question differ in their last turn alone. Weights are random and the same
on all sides; before anything is timed, losses (and, with PyTorch, gradient norms) are compared,
and a difference above 1e-3 ends the run. Prints medians, ratios and the load of the machine; real
tokens are those that are not padding.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from flax import nnx
from rollout import QWEN2_SMALL, any_tokenizer
from timing import Worker, alternate

from sr1_jax.models import Decoder, DecoderConfig, ValueModel
from sr1_jax.models.decoder import Trunk, parameter_count
from sr1_jax.models.export import save_pretrained
from sr1_jax.rl.batch import Batch
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.micro_batches import plan_micro_batches
from sr1_jax.rl.settings import default_config
from sr1_jax.rl.token_logp import token_logp
from sr1_jax.sharding import make_mesh

GROUP = 4  # samples a question
TOLERANCE = 1e-3


def shaken(model: nnx.Module, seed: int, size: float) -> nnx.Module:
    """A copy with normal noise on every parameter, also on those that start as zeros."""
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [x + size * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


def as_decoder(trunk: Trunk, config: DecoderConfig) -> Decoder:
    """The trunk with an output head, to be written to a folder."""
    decoder = Decoder(config, rngs=nnx.Rngs(0))
    decoder.trunk = trunk
    return decoder


def make_batch(args, vocab_size: int) -> tuple[Batch, np.ndarray]:
    """A batch and the length of each sequence."""
    rng = np.random.default_rng(args.seed)
    rows = []
    starts = []  # tokens up to the last turn
    for _ in range(args.sequences):
        mask = [0] * args.prompt
        starts.append(args.prompt)
        if args.batch == "fixed":
            mask += [1] * args.new
        else:
            median, spread = args.segment
            lengths = median * np.exp(spread * rng.normal(size=rng.integers(2, 5)))
            for turn, size in enumerate(np.clip(lengths, 8, 192).astype(int)):
                mask += [0] * args.observation * (turn > 0)
                starts[-1] = len(mask)
                mask += [1] * size
        rows.append(mask)
    if args.alike:
        for row in range(args.sequences):
            first = row - row % GROUP
            rows[row] = rows[first][: starts[first]] + rows[row][starts[row] :]
    length_B = np.array([len(mask) for mask in rows])
    trains_BT = np.zeros((args.sequences, length_B.max()), np.float32)
    ids_BT = np.zeros(trains_BT.shape, np.int32)
    for row, mask in enumerate(rows):
        trains_BT[row, : len(mask)] = mask
        ids_BT[row, : len(mask)] = rng.integers(300, vocab_size, len(mask))
        if args.alike:
            first = row - row % GROUP
            ids_BT[row, : starts[first]] = ids_BT[first, : starts[first]]
    reward_B = rng.uniform(0, 1, args.sequences).astype(np.float32)
    # All of it on the last token, which every sequence has sampled.
    rewards_BT = np.zeros_like(trains_BT)
    rewards_BT[np.arange(args.sequences), length_B - 1] = reward_B
    return Batch(
        ids_BT=ids_BT,
        trains_BT=trains_BT,
        sampled_BT=trains_BT,
        logp_BT=np.zeros_like(trains_BT),
        rewards_BT=rewards_BT,
        reward_B=reward_B,
        group_B=np.arange(args.sequences, dtype=np.int32) // GROUP,
    ), length_B


def sampled_logp(policy: Decoder, batch: Batch, rows: int) -> np.ndarray:
    """What the sampler would have stored with the batch, `rows` at a time."""
    graph, params = nnx.split(policy)
    length = batch.ids_BT.shape[1]

    @jax.jit
    def compute(params, ids_RT, trains_RT):
        return token_logp(nnx.merge(graph, params), ids_RT, trains_RT, max_wanted=length)[0]

    parts = np.split(np.arange(len(batch.ids_BT)), len(batch.ids_BT) // rows)
    return np.concatenate([compute(params, batch.ids_BT[R], batch.trains_BT[R]) for R in parts])


class Ours:
    """Our learner and its state.

    Args:
        args: of the command line.
        algorithm: "ppo" or "grpo".
        settings: of the learner, other than its own and those of the command line.
    """

    def __init__(self, args, algorithm: str, **settings):
        layers = args.layers or QWEN2_SMALL.layers
        # Laid out one after the other, as in small policies of training runs, and as in Tunix.
        shape = dataclasses.replace(QWEN2_SMALL, layers=layers, unroll=layers)
        self.policy = shaken(Decoder(shape, rngs=nnx.Rngs(0)), 0, 0.02)
        self.reference = shaken(self.policy, 1, 0.003)
        self.critic = shaken(ValueModel(shape, rngs=nnx.Rngs(2)), 2, 0.02)
        batch, length_B = make_batch(args, shape.vocab_size)
        self.batch = batch._replace(logp_BT=sampled_logp(self.policy, batch, args.micro_batch))
        self.tokens = int(length_B.sum())
        longest = self.batch.trains_BT.shape[1]
        self.config = default_config()
        self.config.update(
            algorithm=algorithm,
            minibatch_size=args.sequences // args.minibatches,
            micro_batch=args.micro_batch,
            length_buckets=tuple(range(args.bucket, longest + args.bucket, args.bucket)),
            **settings,
        )
        self._learner = Learner(
            self.policy,
            self.critic if algorithm == "ppo" else None,
            self.config,
            make_mesh(),
            trajectories=args.sequences,
            steps=1,
        )
        self._learner.reference = jax.tree.map(
            lambda new, old: jax.device_put(new, old.sharding),
            nnx.state(self.reference),
            self._learner.reference,
        )
        self._state = self._learner.initial_state()
        print(
            f"{parameter_count(self.policy) / 1e6:.1f}M parameters; {args.sequences} sequences, "
            f"{self.tokens} real tokens of at most {longest} a sequence, "
            f"{self.batch.trains_BT.sum():.0f} of them trained; padded to the longest "
            f"{length_B.size * longest / self.tokens - 1:.0%} more"
        )

    def plan(self, trains_BT: np.ndarray, rows: np.ndarray):
        """Micro-batches as our learner lays them out."""
        return plan_micro_batches(trains_BT, rows, self.config)

    def step(self) -> dict[str, float]:
        # Always the same shuffle: after one step all lengths of micro-batches are compiled.
        result = self._learner.step(self._state, self.batch, seed=0, step=0)
        self._state = jax.block_until_ready(result.state)
        return result.metrics

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes the weights of each model; the critic without its head."""
        shape = self.policy.config
        models = {
            "policy": self.policy,
            "reference": self.reference,
            "critic": as_decoder(self.critic.trunk, shape),
        }
        for name, model in models.items():
            save_pretrained(model, any_tokenizer(), folder / name, dtype="float32")
        return {name: folder / name for name in models}


def check(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Prints both sides' numbers; ends the run where they differ."""
    worst = 0.0
    for key, other in theirs.items():
        difference = abs(ours[key] - other) / max(1.0, abs(other))
        worst = max(worst, difference)
        print(f"  {key}: ours {ours[key]:.6f}, theirs {other:.6f}, difference {difference:.1e}")
    if not worst <= TOLERANCE:
        raise SystemExit(f"The sides do not compute the same: they differ by {worst:.1e}.")


def tunix(args) -> None:
    """GRPO by ours and by Tunix's learner."""
    ours = Ours(
        args, "grpo", kl_in="loss", kl_kind="k3", kl_coefficient=args.kl, entropy_coefficient=0.0
    )
    batch, config = ours.batch, ours.config
    request = dict(
        shape={name: getattr(ours.policy.config, name) for name in vars(QWEN2_SMALL)},
        prompts=batch.ids_BT[:, : args.prompt].tolist(),
        completions=batch.ids_BT[:, args.prompt :].tolist(),
        mask=batch.trains_BT[:, args.prompt :].astype(int).tolist(),
        rewards=batch.reward_B.tolist(),
        group=GROUP,
        mini_batch=args.sequences // args.minibatches,
        micro_batch=args.micro_batch,
        kl_coefficient=config.kl_coefficient,
        clip=config.clip,
        learning_rate=config.learning_rate,
        gradient_clip=config.gradient_clip,
    )
    with tempfile.TemporaryDirectory() as folder:
        request |= {name: str(path) for name, path in ours.save(Path(folder)).items()}
        with Worker(args.python, "tunix_learner.py", request) as worker:
            theirs = worker.ask("check")
            metrics = ours.step()
            check({"loss": metrics["policy/loss"], "kl": metrics["kl"]}, theirs)
            worker.ask()  # compiles
            timed(args, ours, "tunix", lambda: worker.ask()["tokens"])


def torch(args) -> None:
    """PPO by ours and by plain PyTorch."""
    import torch
    from torch_ppo import TorchPPO

    torch.set_num_threads(os.cpu_count())
    # Large rates: the second mini-batch is to be clipped, so that this is compared, too.
    ours = Ours(args, "ppo", old_logp="trainer", learning_rate=1e-3, critic_learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        folders = ours.save(Path(folder))
        theirs = TorchPPO(
            **folders,
            head=(ours.critic.head.kernel[...][:, 0], ours.critic.head.bias[...][0]),
            config=ours.config,
            plan=ours.plan,
        )

    def step() -> dict[str, float]:
        return theirs.step(ours.batch, seed=0, step=0)

    check(ours.step(), step())
    timed(args, ours, "torch", lambda: step() and ours.tokens)


def buckets(args) -> None:
    """GRPO in packed rows and in length buckets, as many rows a micro-batch."""
    packed, plain = (
        Ours(args, "grpo", kl_in="loss", kl_kind="k3", packing=packing) for packing in (True, False)
    )
    metrics, theirs = packed.step(), plain.step()
    keys = ("policy/loss", "policy/gradient_norm", "kl")
    check(metrics, {key: theirs[key] for key in keys})
    print(f"padding: packed {metrics['padding_share']:.1%}, buckets {theirs['padding_share']:.1%}")
    timed(args, packed, "buckets", lambda: plain.step() and plain.tokens)


def shared(args) -> None:
    """GRPO with and without shared prefixes, as many rows a micro-batch."""
    common = dict(kl_in="loss", kl_kind="k3")
    ours = Ours(args, "grpo", packing=True, share_prefixes=True, **common)
    plain = Ours(args, "grpo", packing=True, **common)
    metrics, theirs = ours.step(), plain.step()
    # Mini-batches of whole questions are others; with one of them the two are the same.
    keys = ("policy/loss", "policy/gradient_norm", "kl") if args.minibatches == 1 else ("kl",)
    check(metrics, {key: theirs[key] for key in keys})
    print(
        f"shared {metrics['shared_share']:.1%} of the tokens; padding "
        f"{metrics['padding_share']:.1%}, in plain packed rows {theirs['padding_share']:.1%}"
    )
    timed(args, ours, "packed", lambda: plain.step() and plain.tokens)


def timed(args, ours: Ours, name: str, theirs: Callable[[], int]) -> None:
    """Alternates; both sides have done a step before, so all is compiled."""
    sides = {"ours": lambda: ours.step() and ours.tokens, name: theirs}
    alternate(sides, args.runs, "real", sequences=args.sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("against", choices=("tunix", "torch", "buckets", "shared"))
    parser.add_argument("--batch", choices=("fixed", "search"), default="fixed")
    parser.add_argument("--python", help="interpreter of an environment with google-tunix")
    parser.add_argument(
        "--segment", type=float, nargs=2, default=(32, 0.8),
        help="median of the tokens a segment has, and standard deviation of their logarithm",
    )  # fmt: skip
    parser.add_argument(
        "--alike", action="store_true", help="samples of a question differ in their last turn alone"
    )
    parser.add_argument("--kl", type=float, default=0.1, help="coefficient of GRPO's KL term")
    parser.add_argument("--layers", type=int, default=0, help="instead of those of the shape")
    for key, default in dict(
        sequences=32, prompt=128, new=128, observation=160, minibatches=2, micro_batch=8,
        bucket=64, runs=3, seed=0,
    ).items():  # fmt: skip
        parser.add_argument(f"--{key}", type=int, default=default)
    args = parser.parse_args()
    if args.against == "tunix" and not args.python:
        parser.error("tunix needs --python, an interpreter of an environment with google-tunix.")
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    {"tunix": tunix, "torch": torch, "buckets": buckets, "shared": shared}[args.against](args)


if __name__ == "__main__":
    main()

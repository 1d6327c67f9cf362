"""Tunix's GRPO learner for `benchmarks/learner.py tunix`; runs in an environment with google-tunix.

    python benchmarks/tunix_learner.py REQUEST.json

REQUEST holds the shape, folders with the weights of policy and reference, a batch and the settings
of the algorithm. For a line "check": the loss of the batch, before any update. For each other
line: one step of the learner, as `GRPOLearner` does it once the completions are there: log-probs
of the reference, group-relative advantages, and the updates of the actor. Answers with the
"tokens" of the batch that are not padding.
"""

import json
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import params as qwen2_params
from tunix.rl import function_registry, rl_cluster
from tunix.rl import utils as rl_utils
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout
from tunix_sampler import Numbers, answer, model_config

PAD = Numbers().pad_id()
EOS = Numbers().eos_id()


def make_cluster(request):
    """Actor and reference on one device; nothing is ever sampled."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    config = model_config(request["shape"])
    actor, reference = (
        qwen2_params.create_model_from_safe_tensors(request[role], config, mesh, jnp.float32)
        for role in ("policy", "reference")
    )
    prompt, completion = len(request["prompts"][0]), len(request["completions"][0])
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    return rl_cluster.RLCluster(
        actor=actor,
        reference=reference,
        tokenizer=Numbers(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in roles},
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.chain(
                    optax.clip_by_global_norm(request["gradient_clip"]),
                    optax.adamw(request["learning_rate"], weight_decay=0.0),
                ),
                eval_every_n_steps=1_000_000,
                mini_batch_size=request["mini_batch"],
                train_micro_batch_size=request["micro_batch"],
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=completion,
                max_prompt_length=prompt,
                kv_cache_size=prompt + completion,
                temperature=1.0,
            ),
        ),
    )


class Side:
    """The learner and its fixed batch."""

    def __init__(self, request):
        self._request = request
        self._cluster = make_cluster(request)
        settings = grpo_learner.GRPOConfig(
            num_generations=request["group"],
            beta=request["kl_coefficient"],
            epsilon=request["clip"],
            kl_loss_mode="low_var_kl",
            kl_clamp_value=10.0,  # as in ours
            loss_agg_mode="token-mean",
        )
        # It gives the trainer its loss.
        self._learner = grpo_learner.GRPOLearner(
            self._cluster, settings, reward_fns=lambda **_: request["rewards"]
        )
        self._estimator = function_registry.get_advantage_estimator(settings.advantage_estimator)
        self._arrays = {
            "prompt_ids": jnp.array(request["prompts"], jnp.int32),
            "completion_ids": jnp.array(request["completions"], jnp.int32),
            "completion_mask": jnp.array(request["mask"], jnp.int32),
        }

    def micro_batches(self):
        """The batch as its learner would prepare it, cut up."""
        prompt, completion = self._arrays["prompt_ids"], self._arrays["completion_ids"]
        size = self._request["micro_batch"]
        example = grpo_learner.TrainExample(
            **self._arrays,
            prompt_mask=prompt != PAD,
            ref_per_token_logps=self._cluster.get_ref_per_token_logps(
                prompt, completion, PAD, EOS, micro_batch_size=size
            ),
            advantages=jax.device_put(
                self._estimator(np.array(self._request["rewards"]), self._request["group"])
            ),
            old_per_token_logps=None,  # with one iteration they are those of the update
        )
        return [
            rl_utils.get_batch_slice(example, slice(start, start + size))
            for start in range(0, len(prompt), size)
        ]

    def check(self):
        """The loss over all trained tokens and the KL estimate in it."""
        trainer = self._cluster.actor_trainer
        compute = nnx.jit(lambda model, example: trainer.loss_fn(model, example, None))
        sums, tokens = np.zeros(2), 0
        for example in self.micro_batches():
            loss, aux = compute(trainer.model, example)
            count = int(example.completion_mask.sum())
            sums += count * np.array([float(loss), float(aux["kl"])])
            tokens += count
        return dict(zip(("loss", "kl"), (sums / tokens).tolist()))

    def step(self):
        self._cluster.update_actor(self.micro_batches(), None)
        jax.block_until_ready(nnx.state(self._cluster.actor_trainer.model))
        real = sum((self._arrays[name] != PAD).sum() for name in ("prompt_ids", "completion_ids"))
        return {"tokens": int(real)}


def main(path):
    with open(path) as file:
        side = Side(json.load(file))
    for line in sys.stdin:
        answer(**(side.check() if line.strip() == "check" else side.step()))


if __name__ == "__main__":
    main(sys.argv[1])

"""Model FLOPs of a step, and the share that they are of what the devices could do."""

from __future__ import annotations

from collections.abc import Mapping

import ml_collections
from jax.sharding import Mesh

from sr1_jax.chips import peak_flops
from sr1_jax.models.decoder import DecoderConfig
from sr1_jax.models.flops import forward_flops
from sr1_jax.rl.settings import needs_critic
from sr1_jax.training.dynamic_sampling import Sampled
from sr1_jax.training.policies import critic_config
from sr1_jax.training.settings import has_adapters


class Utilisation:
    """Counts what the steps of a run need.

    Of rollouts the tokens that were sampled or fed count (a prompt that is copied from another
    slot does not), with the pairs of all trajectories; of the learner the trajectories trained on:
    one forward pass each of critic, reference and, with learner.old_logp="trainer", policy, and in
    each epoch a forward and a backward pass of policy and critic. A backward pass is twice a
    forward pass; of frozen kernels, under adapters, once. Adapters themselves, a few per cent, do
    not count.

    Args:
        config: of the run.
        shape: of the policy.
        mesh: of the devices.
    """

    def __init__(self, config: ml_collections.ConfigDict, shape: DecoderConfig, mesh: Mesh):
        learner = config.learner
        self._policy = shape
        self._critic = None
        if needs_critic(learner):
            self._critic = critic_config(config) if config.critic.path else shape
        self._forward = (learner.kl_in != "none") + (learner.old_logp == "trainer")
        self._epochs = learner.epochs
        self._kernels = 2 if has_adapters(config) else 3
        peak = config.log.peak_tflops * 1e12 or peak_flops(mesh.devices.flat[0].device_kind)
        self._peak = None if peak is None else peak * mesh.devices.size

    def metrics(
        self, sampled: Sampled, stats: Mapping[str, float], seconds: Mapping[str, float]
    ) -> dict[str, float]:
        """utilisation/model_tflops, 1e12 FLOPs of a step over all devices; where their peak is
        known utilisation/mfu, the share of what they could have done in the step.

        Args:
            sampled: of the step.
            stats: of its rollouts.
            seconds: of `Stopwatch.metrics`.
        """
        flops = self.rollout_flops(sampled, stats) + self.learner_flops(sampled)
        found = {"utilisation/model_tflops": flops / 1e12}
        if self._peak is not None:
            found["utilisation/mfu"] = flops / (self._peak * max(seconds["seconds/step"], 1e-9))
        return found

    def rollout_flops(self, sampled: Sampled, stats: Mapping[str, float]) -> float:
        """Of the rollouts of a step."""
        decoded = stats.get("rollout/decoded_tokens", 0.0)
        return forward_flops(
            self._policy,
            tokens=decoded + stats.get("rollout/prefilled_tokens", 0.0),
            pairs=sum(_pairs(len(t.ids)) for group in sampled.groups for t in group),
            head_tokens=decoded,
        )

    def learner_flops(self, sampled: Sampled) -> float:
        """Of the advantages and updates of a step."""
        tokens = sum(len(t.ids) for t in sampled.trained)
        pairs = sum(_pairs(len(t.ids)) for t in sampled.trained)
        trained = sum(int(t.mask.sum()) for t in sampled.trained if t.trains)

        def passes(shape: DecoderConfig, forward: int, heads: float) -> float:
            kernels = forward + self._kernels * self._epochs
            return forward_flops(
                shape,
                tokens=kernels * tokens,
                pairs=(forward + 3 * self._epochs) * pairs,
                head_tokens=kernels * heads,
            )

        flops = passes(self._policy, self._forward, trained)
        if self._critic is not None:
            flops += passes(self._critic, 1, 0)  # its head has one number a token
        return flops


def _pairs(length: int) -> float:
    return length * (length + 1) / 2

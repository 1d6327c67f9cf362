"""A PPO update in plain PyTorch, for `benchmarks/learner.py torch`: what ours is compared with.

The same steps over the same micro-batches in float32: old log-probs, those of the reference and
values; KL penalty in the rewards, generalised advantages, whitened; then for each mini-batch the
clipped losses of policy and critic, gradient clipping, AdamW. As in ours only trained tokens pass
the output head, and rows are cut to the length of their micro-batch, so that no padding mask
is needed and attention takes its fastest path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from sr1_jax.rl.batch import Batch
from sr1_jax.rl.micro_batches import MicroBatch


class TorchPPO:
    """Policy, reference and critic with their optimizers.

    Args:
        policy, reference, critic: Hugging Face folders; of the critic only the trunk is taken.
        head: weights [D] and bias of the value head.
        config: settings of our learner.
        plan: lays rows of a batch out in micro-batches, as our learner does.
    """

    def __init__(self, policy: Path, reference: Path, critic: Path, head, config, plan):
        self._config, self._plan = config, plan
        self._policy, self._reference = _load(policy), _load(reference)
        self._trunk = _load(critic).model
        self._head = [torch.nn.Parameter(torch.tensor(np.array(x))) for x in head]
        self._critic_parameters = [*self._trunk.parameters(), *self._head]
        self._optimizers = [
            torch.optim.AdamW(parameters, rate, (0.9, config.adam_b2), weight_decay=0.0, fused=True)
            for parameters, rate in (
                (self._policy.parameters(), config.learning_rate),
                (self._critic_parameters, config.critic_learning_rate),
            )
        ]

    def step(self, batch: Batch, *, seed: int, step: int) -> dict[str, float]:
        """One step; metrics are means over the updates, by the names of ours."""
        config = self._config
        ids_BT, mask_BT = torch.tensor(batch.ids_BT).long(), torch.tensor(batch.trains_BT)
        everything = np.arange(len(ids_BT))
        logp_BT, ref_BT, values_BT = (torch.zeros(ids_BT.shape) for _ in range(3))
        with torch.no_grad():
            for rows, length, _ in self._plan(batch.trains_BT, everything):
                at = torch.tensor(rows).long()[:, None], torch.arange(length)
                ids, mask = ids_BT[at], mask_BT[at]
                logp_BT[at] = _logp(self._policy, ids, mask)[0]
                ref_BT[at] = _logp(self._reference, ids, mask)[0]
                values_BT[at] = self._values(ids)
        rewards_BT = -config.kl_coefficient * (logp_BT - ref_BT) * mask_BT
        rewards_BT += torch.tensor(batch.rewards_BT)
        advantages_BT = _gae(rewards_BT, values_BT, mask_BT, config.gamma, config.lam)
        returns_BT = advantages_BT + values_BT
        chosen = advantages_BT[mask_BT > 0]
        advantages_BT = (advantages_BT - chosen.mean()) / torch.sqrt(chosen.var() + 1e-8) * mask_BT
        history = []
        order = np.random.default_rng((seed, step)).permutation(everything)
        for rows in np.split(order, len(order) // config.minibatch_size):
            plan = self._plan(batch.trains_BT, rows)
            tensors = (ids_BT, mask_BT, logp_BT, advantages_BT, values_BT, returns_BT)
            history.append(self._update(tensors, plan, float(batch.trains_BT[rows].sum())))
        return {key: float(np.mean([h[key] for h in history])) for key in history[0]}

    def _update(self, tensors, plan: Sequence[MicroBatch], total: float) -> dict[str, float]:
        config = self._config
        logged = dict.fromkeys(("policy/loss", "policy/clip_fraction", "critic/loss"), 0.0)
        for rows, length, _ in plan:
            at = torch.tensor(rows).long()[:, None], torch.arange(length)
            ids, mask, old_logp, advantages, old_values, returns = (x[at] for x in tensors)
            logp, entropy = _logp(self._policy, ids, mask)
            ratio = torch.exp(logp - old_logp)
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            surrogate = torch.minimum(ratio * advantages, clipped * advantages)
            loss = -(surrogate + config.entropy_coefficient * entropy)[mask > 0].sum() / total
            loss.backward()
            logged["policy/loss"] += loss.item()
            outside = (clipped * advantages < ratio * advantages)[mask > 0].sum()
            logged["policy/clip_fraction"] += outside.item() / total

            values = self._values(ids)
            nearest = old_values + (values - old_values).clamp(
                -config.value_clip, config.value_clip
            )
            error = torch.maximum((values - returns) ** 2, (nearest - returns) ** 2)
            loss = 0.5 * error[mask > 0].sum() / total
            loss.backward()
            logged["critic/loss"] += loss.item()
        sides = (("policy", [*self._policy.parameters()]), ("critic", self._critic_parameters))
        for (name, parameters), optimizer in zip(sides, self._optimizers):
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            logged[f"{name}/gradient_norm"] = norm.item()
            optimizer.step()
            optimizer.zero_grad()
        return logged

    def _values(self, ids_BT):
        """Value of the state before each token."""
        hidden_BTD = self._trunk(ids_BT, use_cache=False).last_hidden_state
        kernel_D, bias = self._head
        return torch.nn.functional.pad((hidden_BTD @ kernel_D + bias)[:, :-1], (1, 0))


def _load(folder: Path) -> transformers.Qwen2ForCausalLM:
    return transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _logp(model: transformers.Qwen2ForCausalLM, ids_BT, mask_BT):
    """Log-probs and entropies of the trained tokens, 0 elsewhere."""
    hidden_BTD = model.model(ids_BT, use_cache=False).last_hidden_state
    trained_BS = mask_BT[:, 1:] > 0
    logits_NV = model.lm_head(hidden_BTD[:, :-1][trained_BS])
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    logp_N = logp_NV.gather(1, ids_BT[:, 1:][trained_BS][:, None])[:, 0]
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    zeros_BS = torch.zeros(trained_BS.shape)
    return tuple(
        torch.nn.functional.pad(zeros_BS.masked_scatter(trained_BS, x_N), (1, 0))
        for x_N in (logp_N, entropy_N)
    )


def _gae(rewards_BT, values_BT, mask_BT, gamma: float, lam: float):
    """Generalised advantages that step over tokens of mask 0."""
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = next_advantage_B = torch.zeros(len(rewards_BT))
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        valid_B = mask_BT[:, t] > 0
        next_value_B = torch.where(valid_B, values_BT[:, t], next_value_B)
        next_advantage_B = torch.where(valid_B, advantage_B, next_advantage_B)
        advantages_BT[:, t] = torch.where(valid_B, advantage_B, 0.0)
    return advantages_BT

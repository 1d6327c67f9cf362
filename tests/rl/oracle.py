"""One learner step written plainly: a loop over single, unpadded trajectories.

Nothing here knows masks: what is no policy token is left out, and what is left forms plain lists.
Shares no formula with the package but the forward pass of the models.

Gradients take two steps of the chain rule, from the loss to the output of the model for each
trajectory and from there to the parameters: one program a length instead of one of everything.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Oracle:
    """Losses and gradients of a step at given parameters.

    Args:
        policy, critic: give the shapes; the critic may be None.
        config: of the learner.
        trajectories: not padded.
        logp_of: function (ids, params) -> log-probs [T, V], row t of token t.
    """

    def __init__(self, policy, critic, config, trajectories, logp_of):
        self._policy_graph = nnx.graphdef(policy)
        self._critic_graph = None if critic is None else nnx.graphdef(critic)
        self._config = config
        self._trajectories = trajectories
        self._logp_of = logp_of

    def _own(self, trajectory):
        return np.flatnonzero(trajectory.mask)

    def logp(self, params, trajectory):
        """Of the policy tokens of one trajectory."""
        own = self._own(trajectory)
        return self._logp_of(trajectory.ids, params)[own, trajectory.ids[own]]

    def kl(self, logp, ref):
        return kl(logp, ref, self._config.kl_kind)

    def prepare(self, state, reference):
        """Per trajectory, lists over its policy tokens: old log-probs, reference log-probs, old
        values, advantages and returns."""
        config = self._config
        rows = []
        for t in self._trajectories:
            own = self._own(t)
            trainer = config.old_logp == "trainer"
            old = self.logp(state.policy.params, t) if trainer else t.logp[own]
            ref = self.logp(reference, t)
            rewards = np.zeros(len(own))
            # A segment ends where the next token of its own is not the next token.
            rewards[np.append(np.diff(own), 2) > 1] = t.segment_rewards
            if config.kl_in == "reward":
                rewards -= config.kl_coefficient * self.kl(old, ref)
            values = np.zeros(len(own))
            if self._critic_graph is not None:
                values_T = forward(state.critic.params, t.ids, graph=self._critic_graph)
                values = np.asarray(values_T)[own - 1]
            rows.append({"old": old, "ref": ref, "values": values, "rewards": rewards})
        {"ppo": self._gae, "reinforce_pp": self._to_go}.get(
            config.algorithm, self._group_advantages
        )(rows)
        if config.importance_cap:
            for t, row in zip(self._trajectories, rows):
                ratio = np.exp(row["old"] - t.logp[self._own(t)])
                row["advantages"] = row["advantages"] * np.minimum(ratio, config.importance_cap)
        return rows

    def _to_go(self, rows):
        gamma = self._config.gamma
        for row in rows:
            steps = range(len(row["rewards"]))
            row["advantages"] = np.array(
                [sum(gamma ** (k - t) * row["rewards"][k] for k in steps if k >= t) for t in steps]
            )
        _standardise(rows)

    def _gae(self, rows):
        config = self._config
        for row in rows:
            advantages, following, next_value = [], 0.0, 0.0
            for reward, value in zip(row["rewards"][::-1], row["values"][::-1]):
                delta = reward + config.gamma * next_value - value
                following = delta + config.gamma * config.lam * following
                next_value = value
                advantages.insert(0, following)
            row["advantages"] = np.array(advantages)
            row["returns"] = row["advantages"] + row["values"]
        if config.whiten:
            _standardise(rows)

    def _group_advantages(self, rows):
        scores = np.array([row["rewards"].sum() for row in rows])
        names = [t.question_id for t in self._trajectories]
        for row, score, name in zip(rows, scores, names):
            group = scores[[other == name for other in names]]
            advantage = score - group.mean()
            if self._config.algorithm == "grpo":
                advantage /= group.std(ddof=1) + 1e-6
            if self._config.algorithm == "rloo":
                advantage = score - (group.sum() - score) / (len(group) - 1)
            row["advantages"] = np.full(len(row["old"]), advantage)

    def policy(self, params, rows, kl_coefficient):
        """(loss, entropy, KL loss), gradients."""
        config = self._config
        count = sum(len(row["old"]) for row in rows)
        low = 1 - config.clip
        high = 1 + (config.clip_high or config.clip)

        def weight(row):
            each = {"token": count, "sequence": len(rows) * len(row["old"])}
            return 1 / each.get(config.loss_aggregation, len(rows) * (config.loss_constant or 0))

        def total(outputs):
            surrogate = entropy = mean_entropy = penalty = 0.0
            for t, row, logits_TV in zip(self._trajectories, rows, outputs):
                own = self._own(t)
                logp_TV = jnp.log(jax.nn.softmax(logits_TV, axis=-1))[own - 1]
                logp = logp_TV[np.arange(len(own)), t.ids[own]]
                ratio = jnp.exp(logp - row["old"])
                if config.ratio == "sequence":
                    ratio = jnp.exp(jnp.mean(logp - row["old"])) * jnp.ones(len(own))
                advantages = jnp.asarray(row["advantages"])
                bounded = jnp.minimum(jnp.maximum(ratio, low), high)
                least = jnp.minimum(ratio * advantages, bounded * advantages)
                if config.dual_clip:
                    bound = jnp.maximum(least, config.dual_clip * advantages)
                    least = jnp.where(advantages < 0, bound, least)
                surrogate += weight(row) * jnp.sum(least)
                row_entropy = jnp.sum(-jnp.exp(logp_TV) * logp_TV)
                entropy += weight(row) * row_entropy
                mean_entropy += row_entropy / count
                penalty += weight(row) * jnp.sum(self.kl(logp, jnp.asarray(row["ref"])))
            loss = -surrogate - config.entropy_coefficient * entropy
            if config.kl_in == "loss":
                loss += kl_coefficient * penalty
            return loss, (-surrogate, mean_entropy)

        (loss, parts), grads = self._differentiate(self._policy_graph, params, total)
        return (float(loss), *map(float, parts)), grads

    def _differentiate(self, graph, params, total):
        ids = [t.ids for t in self._trajectories]
        outputs = [forward(params, ids_T, graph=graph) for ids_T in ids]
        value, cotangents = jax.jit(jax.value_and_grad(total, has_aux=True))(outputs)
        parts = [pull_back(params, *pair, graph=graph) for pair in zip(ids, cotangents)]
        return value, jax.tree.map(lambda *x: sum(map(np.asarray, x)), *parts)

    def critic(self, params, rows):
        """Loss and gradients: the larger of two squared errors, halved."""
        clip = self._config.value_clip
        count = sum(len(row["old"]) for row in rows)

        def total(outputs):
            loss = 0.0
            for t, row, values_T in zip(self._trajectories, rows, outputs):
                values = values_T[self._own(t) - 1]
                near = row["values"] + jnp.clip(values - row["values"], -clip, clip)
                returns = jnp.asarray(row["returns"])
                loss += jnp.sum(jnp.maximum((values - returns) ** 2, (near - returns) ** 2)) / 2
            return loss / count, ()

        (loss, _), grads = self._differentiate(self._critic_graph, params, total)
        return float(loss), grads


def _standardise(rows):
    """Advantages of all tokens together get mean 0 and variance 1."""
    every = np.concatenate([row["advantages"] for row in rows])
    for row in rows:
        row["advantages"] = (row["advantages"] - every.mean()) / every.std(ddof=1)


@functools.partial(jax.jit, static_argnames="graph")
def forward(params, ids_T, *, graph):
    """Output of a model for one sequence."""
    return nnx.merge(graph, params)(ids_T[None])[0]


@functools.partial(jax.jit, static_argnames="graph")
def pull_back(params, ids_T, cotangent, *, graph):
    """Gradient of the parameters, given that of the output."""
    return jax.vjp(lambda p: forward(p, ids_T, graph=graph), params)[1](cotangent)[0]


def kl(logp, ref, kind):
    """Estimates of KL(policy || reference), token by token."""
    difference = logp - ref
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference**2 / 2
    assert kind == "k3"
    return (jnp.exp if isinstance(logp, jax.Array) else np.exp)(-difference) - 1 + difference


def first_adam_step(params, grads, learning_rate, gradient_clip):
    """Parameters after Adam's first step, where both moments are the gradient's own; and the norm
    of the gradient before it was clipped."""
    leaves = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
    norm = np.sqrt(sum((g**2).sum() for g in leaves))
    scale = min(1.0, gradient_clip / norm)

    def one(p, g):
        g = np.asarray(g, np.float64) * scale
        return np.asarray(p, np.float64) - learning_rate * g / (np.abs(g) + 1e-8)

    return jax.tree.map(one, params, grads), norm

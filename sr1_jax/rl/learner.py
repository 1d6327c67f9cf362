"""The learner: jitted, sharded updates of policy and critic from batches of trajectories.

Formulas live in `advantages`, `losses` and `token_logp`; this file strings them together:

    prepare  old, reference and critic passes -> advantages and returns
    update   mini-batches of clipped policy and value losses, each summed over micro-batches
             with exact token weights, clipped, and applied by optax

Array alignment: everything at index t belongs to token t. The critic's value at t is that of the
state before token t, so the model's output is shifted by one.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.models.decoder import Decoder, ValueModel
from sr1_jax.rl.advantages import gae, group_relative, whiten
from sr1_jax.rl.batch import Batch
from sr1_jax.rl.losses import kl_estimate, policy_loss, value_loss
from sr1_jax.rl.masked import masked_mean
from sr1_jax.rl.settings import check_config
from sr1_jax.rl.token_logp import token_logp
from sr1_jax.sharding import named, tree_shardings


class ModelState(NamedTuple):
    """Parameters and optimizer state of one model."""

    params: Any
    opt_state: Any


class LearnerState(NamedTuple):
    """All that training changes; a step returns a new one.

    Attributes:
        policy: of the policy.
        critic: of the value model; None without one.
        kl_coefficient: float32 scalar.
    """

    policy: ModelState
    critic: ModelState | None
    kl_coefficient: jax.Array


class Prepared(NamedTuple):
    """A batch with everything the updates need; all [B, T]."""

    ids_BT: jax.Array
    mask_BT: jax.Array
    old_logp_BT: jax.Array
    ref_logp_BT: jax.Array
    old_values_BT: jax.Array
    advantages_BT: jax.Array
    returns_BT: jax.Array


def make_optimizer(
    learning_rate: float, warmup_steps: int, config: ml_collections.ConfigDict
) -> optax.GradientTransformation:
    """AdamW with a clipped global norm.

    The rate warms up linearly, then stays, or falls along a cosine to a tenth where
    config.decay_steps, counted from the first step, is not 0.
    """
    if config.decay_steps:
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, learning_rate, warmup_steps, config.decay_steps, 0.1 * learning_rate
        )
    elif warmup_steps:
        schedule = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    else:
        schedule = optax.constant_schedule(learning_rate)
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(schedule, b2=config.adam_b2, weight_decay=config.weight_decay),
    )


def copy_to_mesh(params: Any, mesh: Mesh) -> Any:
    """The parameters, placed on the mesh, in buffers of their own."""
    # jit gives new buffers: donating them cannot touch the caller's.
    copy = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=tree_shardings(params, mesh)
    )
    return copy(params)


def place_model(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> ModelState:
    """A copy of the parameters and a fresh optimizer state, initialised straight into place."""
    params = copy_to_mesh(params, mesh)
    shapes = jax.eval_shape(optimizer.init, params)
    init = jax.jit(optimizer.init, out_shardings=tree_shardings(shapes, mesh))
    return ModelState(params, init(params))


class Learner:
    """PPO or GRPO on a mesh.

    Args:
        policy: the policy; its parameters are copied, and copied again as the frozen reference.
        critic: the value model, for PPO.
        config: see `settings.default_config`.
        mesh: of `sharding.make_mesh`.
        trajectories: B, trajectories a step.
        temperature: of sampling.

    Raises:
        ValueError: settings or sizes that cannot work.
    """

    def __init__(
        self,
        policy: Decoder,
        critic: ValueModel | None,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
        *,
        trajectories: int,
        temperature: float = 1.0,
    ):
        check_config(config, trajectories)
        if (critic is None) != (config.algorithm == "grpo"):
            raise ValueError("PPO needs a critic, GRPO has none.")
        batch_devices = mesh.shape["data"] * mesh.shape["fsdp"]
        if config.micro_batch % batch_devices:
            raise ValueError(
                f"learner.micro_batch={config.micro_batch} does not divide over the "
                f"{batch_devices} devices of mesh axes data and fsdp."
            )
        self._config = config
        self._mesh = mesh
        self._temperature = temperature
        self._policy_graph, policy_params = nnx.split(policy)
        self._policy_optimizer = make_optimizer(config.learning_rate, config.warmup_steps, config)
        self._critic_graph = critic_state = None
        if critic is not None:
            self._critic_graph, critic_params = nnx.split(critic)
            self._critic_optimizer = make_optimizer(
                config.critic_learning_rate, config.critic_warmup_steps, config
            )
            critic_state = place_model(critic_params, self._critic_optimizer, mesh)
        self.initial_state = LearnerState(
            policy=place_model(policy_params, self._policy_optimizer, mesh),
            critic=critic_state,
            kl_coefficient=jax.device_put(
                jnp.float32(0 if config.kl_in == "none" else config.kl_coefficient),
                named(mesh),
            ),
        )
        self.reference = copy_to_mesh(policy_params, mesh)
        self._prepare = jax.jit(self._prepare_fn, static_argnames="most")
        # Updates hand back their state where they found it, so that donation works and nothing
        # moves between steps.
        self._update_policy = jax.jit(
            functools.partial(self._update, self._policy_loss, "policy"),
            donate_argnums=0,
            static_argnames="most",
            out_shardings=(_shardings(self.initial_state.policy), None),
        )
        if critic is not None:
            self._update_critic = jax.jit(
                functools.partial(self._update, self._critic_loss, "critic"),
                donate_argnums=0,
                static_argnames="most",
                out_shardings=(_shardings(critic_state), None),
            )

    def step(
        self, state: LearnerState, batch: Batch, *, seed: int, step: int
    ) -> tuple[LearnerState, dict[str, float]]:
        """One PPO or GRPO step over a batch.

        Args:
            state: donated; use the returned one.
            batch: of `make_batch`, B as given to the constructor.
            seed, step: decide the shuffle into mini-batches.

        Returns:
            The new state and metrics averaged over the updates.
        """
        sharding = named(self._mesh, "batch")
        most = _row_bound(batch.mask_BT)
        prepared, metrics = self._prepare(
            state, self.reference, jax.device_put(batch, sharding), most=most
        )
        rng = np.random.default_rng((seed, step))
        history: list[dict[str, jax.Array]] = []
        policy, critic = state.policy, state.critic
        for _ in range(self._config.epochs):
            order = rng.permutation(len(batch.reward_B))
            for rows in np.split(order, self._config.minibatches):
                minibatch = jax.device_put(_take_rows(prepared, rows), sharding)
                policy, logged = self._update_policy(
                    policy, minibatch, state.kl_coefficient, most=most
                )
                if critic is not None:
                    critic, more = self._update_critic(
                        critic, minibatch, state.kl_coefficient, most=most
                    )
                    logged |= more
                history.append(logged)
        means = {key: float(np.mean([float(h[key]) for h in history])) for key in history[0]}
        # Before the first update the trainer has the sampler's own weights, so what is left of
        # the difference is numerics: the sampler/trainer mismatch.
        means["rollout_gap"] = float(history[0]["policy/old_logp_gap"])
        means |= {key: float(value) for key, value in metrics.items()}
        return LearnerState(policy, critic, state.kl_coefficient), means

    # Everything below is traced.

    def _prepare_fn(self, state: LearnerState, reference, batch: Batch, *, most: int):
        config = self._config
        micro = jax.tree.map(self._by_micro_batch, (batch.ids_BT, batch.mask_BT))

        def logp(params, rows):
            return self._token_logp(params, *rows, most)[0]

        def passes(rows):
            ids_BT, _ = rows
            zeros = jnp.zeros(ids_BT.shape, jnp.float32)
            ref_logp = zeros if config.kl_in == "none" else logp(reference, rows)
            old = logp(state.policy.params, rows) if config.old_logp == "trainer" else zeros
            values = zeros if state.critic is None else self._values(state.critic.params, ids_BT)
            return ref_logp, old, values

        ref_logp_BT, old_BT, values_BT = (
            x.reshape(batch.ids_BT.shape) for x in jax.lax.map(passes, micro)
        )
        old_logp_BT = old_BT if config.old_logp == "trainer" else batch.logp_BT
        mask_BT = batch.mask_BT
        kl_BT = jnp.zeros_like(mask_BT)
        if config.kl_in != "none":
            kl_BT = kl_estimate(old_logp_BT, ref_logp_BT, config.kl_kind, mask_BT=mask_BT)
        rewards_BT = _reward_on_last_token(batch.reward_B, mask_BT)
        if config.kl_in == "reward":
            rewards_BT -= state.kl_coefficient * kl_BT * mask_BT
        if state.critic is None:
            advantages_B = group_relative(rewards_BT.sum(axis=1), batch.group_B)
            advantages_BT, returns_BT = advantages_B[:, None] * mask_BT, jnp.zeros_like(mask_BT)
        else:
            advantages_BT, returns_BT = gae(
                rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.lam
            )
            if config.whiten:
                advantages_BT = whiten(advantages_BT, mask_BT)
        metrics = {"kl": masked_mean(kl_BT, mask_BT), "trained_tokens": mask_BT.sum()}
        if config.old_logp == "trainer":
            # The losses never see the stored ones then; the gap is between these two.
            sampled_BT = mask_BT * (batch.logp_BT != 0)
            metrics["rollout_gap"] = masked_mean(jnp.abs(old_BT - batch.logp_BT), sampled_BT)
        if state.critic is not None:
            residual = _masked_variance(returns_BT - values_BT, mask_BT)
            metrics["critic/explained_variance"] = 1 - residual / jnp.maximum(
                _masked_variance(returns_BT, mask_BT), 1e-8
            )
            metrics["critic/value_mean"] = masked_mean(values_BT, mask_BT)
        prepared = Prepared(
            batch.ids_BT, mask_BT, old_logp_BT, ref_logp_BT, values_BT, advantages_BT, returns_BT
        )
        return prepared, metrics

    def _values(self, params, ids_BT):
        values_BT = nnx.merge(self._critic_graph, params)(ids_BT)
        return jnp.pad(values_BT[:, :-1], ((0, 0), (1, 0)))

    def _by_micro_batch(self, x):
        """[B, …] -> [micro-batches, micro_batch, …]."""
        x = x.reshape(-1, self._config.micro_batch, *x.shape[1:])
        # Otherwise a device holds whole micro-batches, and all devices compute each of them.
        return jax.lax.with_sharding_constraint(x, named(self._mesh, None, "batch"))

    def _token_logp(self, params, ids_BT, mask_BT, most: int):
        return token_logp(
            nnx.merge(self._policy_graph, params),
            ids_BT,
            mask_BT,
            most=most,
            temperature=self._temperature,
            chunk_tokens=self._config.chunk_tokens,
        )

    def _policy_loss(self, params, b: Prepared, kl_coefficient, most: int):
        config = self._config
        logp_BT, entropy_BT = self._token_logp(params, b.ids_BT, b.mask_BT, most)
        loss, metrics = policy_loss(
            logp_BT, b.old_logp_BT, b.advantages_BT, b.mask_BT, clip=config.clip
        )
        entropy = masked_mean(entropy_BT, b.mask_BT)
        metrics |= {
            "surrogate": loss,
            "entropy": entropy,
            "old_logp_gap": masked_mean(jnp.abs(logp_BT - b.old_logp_BT), b.mask_BT),
        }
        loss -= config.entropy_coefficient * entropy
        if config.kl_in == "loss":
            kl_BT = kl_estimate(logp_BT, b.ref_logp_BT, config.kl_kind, mask_BT=b.mask_BT)
            loss += kl_coefficient * masked_mean(kl_BT, b.mask_BT)
        return loss, metrics

    def _critic_loss(self, params, b: Prepared, kl_coefficient, most: int):
        del kl_coefficient, most  # of the policy only
        loss, metrics = value_loss(
            self._values(params, b.ids_BT),
            b.old_values_BT,
            b.returns_BT,
            b.mask_BT,
            clip=self._config.value_clip,
        )
        return loss, metrics

    def _update(
        self, loss_fn, name: str, state: ModelState, minibatch: Prepared, kl_coefficient, *, most
    ):
        """One optimizer step; micro-batches weigh as much as they have tokens."""
        optimizer = self._policy_optimizer if name == "policy" else self._critic_optimizer
        grads, metrics = accumulate_gradients(
            functools.partial(loss_fn, kl_coefficient=kl_coefficient, most=most),
            state.params,
            jax.tree.map(self._by_micro_batch, minibatch),
        )
        metrics["gradient_norm"] = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return ModelState(params, opt_state), {f"{name}/{k}": v for k, v in metrics.items()}


def accumulate_gradients(loss_fn, params, micro_batches):
    """Gradient and metrics of a token-mean loss over stacked micro-batches.

    Each micro-batch's mean is weighted by its share of the tokens of all, so the result is that
    of one large batch, however it is cut.

    Args:
        loss_fn: (params, micro-batch) -> (token-mean loss, dict of token means).
        params: differentiated.
        micro_batches: tree with `mask_BT`; a leading axis over micro-batches.

    Returns:
        (gradients, metrics with "loss").
    """
    total = jnp.maximum(micro_batches.mask_BT.sum(), 1)

    def add(carry, micro_batch):
        weight = micro_batch.mask_BT.sum() / total

        def weighted(params):
            loss, metrics = loss_fn(params, micro_batch)
            return loss * weight, {k: v * weight for k, v in (metrics | {"loss": loss}).items()}

        grads, metrics = jax.grad(weighted, has_aux=True)(params)
        return jax.tree.map(jnp.add, carry, grads), metrics

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    grads, metrics = jax.lax.scan(add, zeros, micro_batches)
    return grads, {key: value.sum() for key, value in metrics.items()}


def _row_bound(mask_BT: np.ndarray) -> int:
    """A static bound on the trained tokens of a row: an eighth of the length, or a multiple that
    is a power of two, so that few programs are compiled."""
    length, most = mask_BT.shape[1], int(mask_BT.sum(axis=1).max())
    bound = -(-length // 8)
    while bound < most:
        bound *= 2
    return min(bound, length)


def _take_rows(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


def _shardings(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def _reward_on_last_token(reward_B, mask_BT):
    """Each outcome reward at the last token of mask 1; nowhere if there is none."""
    last_BT = (mask_BT > 0) & (jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1] == 1)
    return last_BT * reward_B[:, None]


def _masked_variance(x_BT, mask_BT):
    return masked_mean(jnp.square(x_BT - masked_mean(x_BT, mask_BT)), mask_BT)

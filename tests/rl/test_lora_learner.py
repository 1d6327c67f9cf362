"""Training with adapters: their gradients, a base that stays, and a reference without them."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from learner_runs import LearnerRun, learner_config
from trees import adam, assert_trees_close, changed, first_gradient

from sr1_jax.models.lora import LoraConfig, add_adapters, merged_model
from sr1_jax.sharding import make_mesh, tree_shardings

LORA = LoraConfig(rank=3, alpha=6.0)
SETTINGS = dict(gradient_clip=1e9)
TRAINER = dict(old_logp="trainer")


@pytest.fixture(scope="module")
def adapted(rl_policy, rl_critic):
    """Policy and critic with adapters that are no longer zero."""

    def unsettled(model, seed):
        model = add_adapters(model, LORA, seed=seed)
        rng = np.random.default_rng(seed)
        adapters = nnx.state(model, nnx.LoRAParam)
        nnx.update(model, jax.tree.map(lambda x: x + rng.normal(size=x.shape, scale=0.1), adapters))
        return model

    return unsettled(rl_policy, 7), unsettled(rl_critic, 8)


@pytest.fixture(scope="module")
def lora_run(adapted):
    @functools.cache
    def run(shape=(1, 1, 1), **changes):
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        return LearnerRun(*adapted, learner_config(**SETTINGS, **changes), mesh)

    return run


@pytest.fixture(scope="module")
def dense_run(adapted):
    """The learner of all parameters, started from the merged models."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    models = [merged_model(model) for model in adapted]
    # Its reference is not the base, so it has no KL term.
    return LearnerRun(*models, learner_config(**SETTINGS, kl_in="none"), mesh)


def by_path(state):
    return {".".join(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(state)}


def test_gradients_follow_from_those_of_the_kernels(lora_run, dense_run, batch):
    """dA = s · dW Bᵀ and dB = s · Aᵀ dW, with dW of a learner without adapters."""
    lora, dense = lora_run(kl_in="none"), dense_run
    after, metrics = lora.step(batch)
    after_dense, metrics_dense = dense.step(batch)
    for key in ("policy/loss", "policy/entropy", "critic/loss", "critic/explained_variance"):
        assert metrics[key] == pytest.approx(metrics_dense[key], rel=1e-4, abs=1e-5)
    checked = 0
    for name in ("policy", "critic"):
        got = by_path(first_gradient(getattr(after, name)))
        want = by_path(first_gradient(getattr(after_dense, name)))
        start = by_path(getattr(lora.start, name).params)
        for path, gradient in got.items():
            layer, kind = path.rsplit(".", 1)
            if kind not in ("lora_a", "lora_b"):
                assert path.startswith("head.")
                np.testing.assert_allclose(gradient, want[path], atol=2e-5)
                continue
            a, b = start[f"{layer}.lora_a"], start[f"{layer}.lora_b"]
            for index in range(len(a)):
                dW = want[f"{layer}.kernel"][index].reshape(a[index].size // 3, -1)
                A, B = a[index].reshape(-1, 3), b[index].reshape(3, -1)
                expected = 2.0 * (dW @ B.T if kind == "lora_a" else A.T @ dW)
                np.testing.assert_allclose(
                    gradient[index].reshape(expected.shape), expected, atol=5e-5
                )
            checked += 1
    assert checked == 2 * 2 * 7


def test_only_adapters_move(lora_run, batch):
    run = lora_run(**TRAINER)
    learner = run.learner
    models = {"policy": learner._policy, "critic": learner._critic}
    frozen = {name: jax.tree.map(np.array, model.frozen) for name, model in models.items()}
    after, _ = run.step(batch)
    for name in ("policy", "critic"):
        kept = models[name].frozen
        assert_trees_close(kept, frozen[name], rtol=0)
        state, start = getattr(after, name), getattr(run.start, name)
        trained = by_path(state.params)
        assert {p for p in trained if "lora" not in p} == (
            set() if name == "policy" else {"head.kernel", "head.bias"}
        )
        assert all(np.any(x != by_path(start.params)[p]) for p, x in trained.items())
        # The optimizer has moments of what is trained, and of nothing else.
        assert by_path(adam(state.opt_state).mu).keys() == trained.keys()
        assert not any("lora" in path for path in by_path(kept))


def test_the_critic_shares_the_base(rl_policy, rl_critic):
    adapted = add_adapters(rl_critic, LORA, seed=0)
    base, shared = (nnx.split(m, nnx.LoRAParam, ...)[-1] for m in (rl_critic, adapted))
    assert jax.tree.leaves(base) and all(
        a is b for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(shared))
    )


def test_the_reference_is_the_base(lora_run, rl_policy, trajectories, full_logp, batch):
    """The KL is that of the adapted policy to the base, though the trajectories are the base's."""
    run = lora_run(**TRAINER)
    _, metrics = run.step(batch)
    merged = run.learner.policy_params(run.start)
    difference = []
    for t in trajectories:
        own = np.flatnonzero(t.mask)
        new, ref = (full_logp(t.ids, p)[own, t.ids[own]] for p in (merged, None))
        difference.append(new - ref)
    assert metrics["kl"] == pytest.approx(np.concatenate(difference).mean(), rel=1e-3)
    assert abs(metrics["kl"]) > 1e-3
    leaves = zip(
        jax.tree.leaves(run.learner.reference), jax.tree.leaves(run.learner._policy.frozen)
    )
    assert all(a is b for a, b in leaves)


def test_rollouts_get_a_plain_decoder(lora_run, adapted, rl_policy, batch):
    run = lora_run(**TRAINER)
    params = run.learner.policy_params(run.start)
    graph = nnx.graphdef(rl_policy)
    ids = batch.ids_BT[:4]
    np.testing.assert_allclose(nnx.merge(graph, params)(ids), adapted[0](ids), atol=1e-4)
    assert changed(params, nnx.state(rl_policy))
    assert jax.tree.structure(params) == jax.tree.structure(nnx.state(rl_policy))


def test_all_meshes_compute_the_same(lora_run, batch):
    one, many = lora_run(**TRAINER), lora_run((2, 2, 2), **TRAINER)
    after, metrics = one.step(batch)
    after_many, metrics_many = many.step(batch)
    assert metrics_many == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    for name in ("policy", "critic"):
        assert_trees_close(
            first_gradient(getattr(after_many, name)), first_gradient(getattr(after, name)),
            atol=2e-5,
        )  # fmt: skip
    params = many.learner.policy_params(after_many)
    assert jax.tree.map(lambda x: x.sharding, params) == tree_shardings(params, many.learner._mesh)

"""What tests of the learner say of parameters and optimizer state."""

import jax
import numpy as np
import optax


def assert_trees_close(got, want, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance),
        got,
        want,
    )


def adam(opt_state) -> optax.ScaleByAdamState:
    states = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    return next(s for s in states if isinstance(s, optax.ScaleByAdamState))


def first_gradient(model_state):
    """The clipped gradient of a first step: Adam's first moment is a tenth of it."""
    return jax.tree.map(lambda m: np.asarray(m) * 10, adam(model_state.opt_state).mu)


def changed(got, want) -> bool:
    return any(
        not np.allclose(a, b, atol=1e-6)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want))
    )


def assert_learned_alike(after, want):
    """Two states of a learner: parameters and first moments of each model."""
    for name in ("policy", "critic"):
        got, model = getattr(after, name), getattr(want, name)
        if model is not None:
            assert_trees_close(adam(got.opt_state).mu, adam(model.opt_state).mu, atol=1e-6)
            assert_trees_close(got.params, model.params, atol=1e-5)

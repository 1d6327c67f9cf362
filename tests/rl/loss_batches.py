"""Made-up batches of log-probabilities, with anything at masked tokens, and a gradient check."""

import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

_GARBAGE = np.array([np.inf, -np.inf, np.nan])


def random_batch(seed, arrays, scale=0.4, shape=(3, 8)):
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < 0.6).astype(np.int32)
    mask[0], mask[1, 0] = 0, 1
    return *(rng.normal(size=shape, scale=scale) for _ in range(arrays)), mask


def spoil(array, mask):
    """The array with inf, -inf and nan at every masked token."""
    garbage = np.resize(_GARBAGE, array.shape)
    return jnp.asarray(np.where(mask == 1, array, garbage), jnp.float32)


def assert_gradient(function, x):
    """Reverse mode against central differences (float32, hence the wide tolerance)."""
    check_grads(
        lambda x: function(jnp.asarray(x)), (x,), 1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-3
    )

"""Fingerprints of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from sr1_jax.evaluation.weights import params_fingerprint
from sr1_jax.sharding import make_mesh


def params(**arrays):
    return nnx.state(nnx.Dict({name: nnx.Param(array) for name, array in arrays.items()}))


def test_every_bit_counts():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    swapped = x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    nudged = x.copy()
    nudged[3, 5] = np.nextafter(nudged[3, 5], np.inf)
    different = [
        params(w=jnp.asarray(one))
        for one in (x, swapped, nudged, x.T, x.reshape(6, 4), x[:3], -x, x.astype(jnp.bfloat16))
    ]
    different += [params(v=jnp.asarray(x)), params(w=jnp.asarray(x), v=jnp.zeros(1))]
    assert len({params_fingerprint(one) for one in different}) == len(different)
    assert params_fingerprint(different[0]) == params_fingerprint(params(w=jnp.asarray(x.copy())))


def test_the_mesh_does_not_count():
    x = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    mesh = make_mesh(2, 2, 2)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    spread = params(w=jax.device_put(x, sharding))
    assert params_fingerprint(spread) == params_fingerprint(params(w=jnp.asarray(x)))


def test_kinds_of_numbers():
    one = params(a=jnp.arange(3, dtype=jnp.int8), b=jnp.float32(2), c=jnp.ones(3, jnp.bfloat16))
    assert len(params_fingerprint(one)) == 64

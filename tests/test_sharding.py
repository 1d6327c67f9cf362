"""The mesh, and the table that says which parameter is split over which of its axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from sr1_jax import sharding
from sr1_jax.models.decoder import Decoder, DecoderConfig, ValueModel
from sr1_jax.sharding import (
    CACHE_AXES,
    compute_on,
    constrain,
    current_mesh,
    device_grid,
    gather_layer,
    look_up,
    make_mesh,
    named,
    spec,
    tree_shardings,
)

BATCH = ("data", "fsdp")
# What follows "trunk/layers/" in a parameter's path -> how it is split.
LAYERS = {
    "attention_norm/scale": P(None, None),
    "ff_norm/scale": P(None, None),
    "attention/q/kernel": P(None, "fsdp", "tensor", None),
    "attention/k/kernel": P(None, "fsdp", "tensor", None),
    "attention/v/kernel": P(None, "fsdp", "tensor", None),
    "attention/o/kernel": P(None, "tensor", None, "fsdp"),
    "attention/q/bias": P(None, "tensor", None),
    "attention/k/bias": P(None, "tensor", None),
    "attention/v/bias": P(None, "tensor", None),
    "attention/q_norm/scale": P(None, None),
    "attention/k_norm/scale": P(None, None),
    "ff/gate/kernel": P(None, "fsdp", "tensor"),
    "ff/up/kernel": P(None, "fsdp", "tensor"),
    "ff/down/kernel": P(None, "tensor", "fsdp"),
}
TRUNK = {f"trunk/layers/{name}": split for name, split in LAYERS.items()} | {
    "trunk/embed/embedding": P("tensor", "fsdp"),
    "trunk/norm/scale": P(None),
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 2, 2)


def shape_of(**changes) -> DecoderConfig:
    sizes = dict(
        vocab_size=32,
        width=16,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=4,
        ff_width=24,
        qkv_bias=True,
        qk_norm=True,
        tied_embeddings=False,
    )
    return DecoderConfig(**sizes | changes)


def parameters(kind, config):
    return nnx.state(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))


def by_path(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in leaves
    }


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 4, -1), (1, 4, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_mesh_over_all_devices(sizes, shape):
    mesh = make_mesh(*sizes)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), shape))
    assert set(mesh.devices.flat) == set(jax.devices())


def test_mesh_over_given_devices():
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[3:4])
    assert mesh.devices.ravel().tolist() == jax.devices()[3:4]
    assert make_mesh(devices=jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        ((-1, 3, 1), "data=-1, fsdp=3, tensor=1 does not fit 8 devices"),
        ((2, 2, 1), "does not fit 8 devices"),
        ((16, 1, 1), "does not fit 8 devices"),
        ((-1, -1, 1), "at most one is -1"),
        ((0, 1, 1), "sizes are positive"),
        ((-2, 4, 1), "sizes are positive"),
    ],
)
def test_mesh_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(*sizes)


def test_every_parameter_of_the_policy(mesh):
    params = parameters(Decoder, shape_of())
    splits = {path: where.spec for path, where in by_path(tree_shardings(params, mesh)).items()}
    assert splits == TRUNK | {"head/kernel": P("fsdp", "tensor")}


def test_every_parameter_of_the_critic(mesh):
    params = parameters(ValueModel, shape_of())
    splits = {path: where.spec for path, where in by_path(tree_shardings(params, mesh)).items()}
    assert splits == TRUNK | {"head/kernel": P("fsdp", None), "head/bias": P(None)}


def test_a_plain_policy_has_fewer_parameters(mesh):
    config = shape_of(qkv_bias=False, qk_norm=False, tied_embeddings=True)
    splits = by_path(tree_shardings(parameters(Decoder, config), mesh))
    gone = {name for name in TRUNK if "bias" in name or "q_norm" in name or "k_norm" in name}
    assert set(splits) == set(TRUNK) - gone


@pytest.mark.parametrize("kind", [Decoder, ValueModel])
def test_optimizer_state_is_split_like_its_parameters(mesh, kind):
    params = parameters(kind, shape_of())
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    where = tree_shardings(jax.eval_shape(optimizer.init, params), mesh)
    expected = by_path(tree_shardings(params, mesh))
    for moment in ("mu", "nu"):
        got = {
            path.split(f"/{moment}/")[1]: sharding
            for path, sharding in by_path(where).items()
            if f"/{moment}/" in path
        }
        assert got == expected
    counters = [s for path, s in by_path(where).items() if path.endswith("count")]
    assert counters and all(s.is_fully_replicated for s in counters)


def test_placed_parameters_lie_where_the_table_says(mesh):
    params = parameters(Decoder, shape_of())
    where = tree_shardings(params, mesh)
    placed = jax.jit(
        lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params), out_shardings=where
    )()
    shards = {path: leaf.addressable_shards[0].data.shape for path, leaf in by_path(placed).items()}
    assert shards["trunk/embed/embedding"] == (16, 8)
    assert shards["trunk/layers/attention/o/kernel"] == (3, 2, 4, 8)
    assert shards["trunk/layers/attention/k/bias"] == (3, 1, 4)
    assert shards["head/kernel"] == (8, 16)


@pytest.mark.parametrize(
    ("changes", "sizes", "parts"),
    [
        (
            dict(kv_heads=1),
            (1, 1, 8),
            ("trunk/layers/attention/k/", "size 1", "8 devices", "tensor can be at most 1"),
        ),
        (dict(ff_width=6), (1, 2, 4), ("trunk/layers/ff/", "ff", "size 6", "4 devices")),
        (dict(width=20), (1, 8, 1), ("head/kernel", "embed", "size 20", "8 devices")),
        (dict(vocab_size=31), (2, 2, 2), ("head/kernel", "vocab", "size 31", "2 devices")),
    ],
)
def test_a_size_the_mesh_does_not_divide(changes, sizes, parts):
    config = shape_of(**dict(heads=8, kv_heads=8) | changes)
    mesh = make_mesh(*sizes)
    with pytest.raises(ValueError) as error:
        tree_shardings(parameters(Decoder, config), mesh)
    message = str(error.value)
    for part in (*parts, str(dict(mesh.shape))):
        assert part in message


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (
            {"trunk": {"layers": {"mixer": {"kernel": np.zeros((2, 4))}}}},
            "trunk/layers/mixer/kernel",
        ),
        ({"trunk": {"norm": {"scale": np.zeros((2, 4))}}}, "trunk/norm/scale"),
        ({"head": {"scale": np.zeros(4)}}, "head/scale"),
    ],
)
def test_a_parameter_the_table_does_not_know(mesh, tree, name):
    with pytest.raises(ValueError, match=rf"Parameter {name} .* no entry in PARAMETER_AXES"):
        tree_shardings(tree, mesh)


def test_batches_and_caches(mesh):
    assert named(mesh, "batch").spec == P(BATCH)
    assert named(mesh).is_fully_replicated
    assert spec(CACHE_AXES) == P(BATCH, "tensor")


def test_two_axes_on_one_mesh_axis_are_refused(mesh, monkeypatch):
    monkeypatch.setitem(sharding.RULES, "embed", "tensor")
    with pytest.raises(ValueError) as error:
        tree_shardings({"head": {"kernel": np.zeros((4, 8))}}, mesh)
    for part in ("head/kernel (4, 8)", "embed and vocab", "mesh axis tensor"):
        assert part in str(error.value)


class Chip:
    """A device of a TPU slice, as far as meshes look at one."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


def test_only_the_data_axis_crosses_slices():
    chips = [Chip(number, slice_index=number % 2) for number in range(16)]
    grid = device_grid((4, 2, 2), chips)
    assert grid.shape == (4, 2, 2)
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    assert [set(part.ravel()) for part in slices] == [{0}, {0}, {1}, {1}]
    assert {chip.id for chip in grid.ravel()} == set(range(16))
    with pytest.raises(ValueError, match="data=1 does not divide over 2 TPU slices"):
        device_grid((1, 8, 2), chips)


def test_compute_on_nests_and_ends(mesh):
    other = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    assert current_mesh() is None
    with compute_on(mesh):
        with compute_on(other):
            assert current_mesh() is other
        assert current_mesh() is mesh
    assert current_mesh() is None
    x = jnp.ones((4, 2))
    assert constrain(x, "batch", None) is x


def test_a_layer_is_collected_in_the_compute_dtype_and_its_gradient_split(mesh):
    """Whole but for `tensor` inside; where the table says, and in its own dtype, outside."""
    layer = {
        "attention_norm": {"scale": jnp.ones(16)},
        "ff": {"gate": {"kernel": jnp.arange(16 * 24.0).reshape(16, 24) / 100}},
    }
    seen = {}

    def loss(layer):
        with compute_on(mesh):
            collected = gather_layer(layer, "bfloat16")
        kernel = collected["ff"]["gate"]["kernel"]
        jax.debug.inspect_array_sharding(kernel, callback=lambda s: seen.update(inside=s.spec))
        assert kernel.dtype == jnp.bfloat16
        assert collected["attention_norm"]["scale"].dtype == jnp.float32
        return jnp.sum(kernel.astype(jnp.float32) ** 2)

    grads = jax.jit(jax.grad(loss))(layer)
    kernel = layer["ff"]["gate"]["kernel"]
    assert seen["inside"] == P(None, "tensor")
    got = grads["ff"]["gate"]["kernel"]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 2 * kernel, rtol=0.02)
    assert got.sharding.spec == P("fsdp", "tensor")


def test_looking_up_an_embedding_that_is_split(mesh):
    """Rows, and the gradient at them, are those of the whole table, here in bfloat16."""
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    ids, weight = rng.integers(0, 12, (8, 5)), rng.normal(size=(8, 5, 6))

    def on_mesh(table):
        with compute_on(mesh):
            x = look_up(table, jnp.asarray(ids), "bfloat16")
        return jnp.sum(x * weight), x

    gradient, rows = jax.jit(jax.grad(on_mesh, has_aux=True))(table)
    np.testing.assert_array_equal(rows, table[ids].astype(jnp.bfloat16))
    assert rows.sharding.spec[0] == BATCH
    want = np.zeros((12, 6))
    np.add.at(want, ids, np.asarray(jnp.asarray(weight, jnp.bfloat16), np.float64))
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-5)


class HostedChip:
    """A chip of a v5e slice, four by four, whose hosts have squares of two by two."""

    platform, device_kind, core_on_chip, slice_index = "tpu", "TPU v5 lite", 0, 0

    def __init__(self, x, y):
        self.id, self.coords, self.process_index = 4 * y + x, (x, y, 0), x // 2 + 2 * (y // 2)

    def __repr__(self):
        return f"chip {self.coords}"


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 2, 4)])
def test_tensor_stays_on_a_host(shape):
    chips = [HostedChip(x, y) for y in range(4) for x in range(4)]
    grid = device_grid(shape, chips)
    assert grid.shape == shape and set(grid.flat) == set(chips)
    runs = grid.reshape(-1, shape[-1])
    assert all(len({chip.process_index for chip in run}) == 1 for run in runs)
    # Row by row, as a compiler for TPUs can route it.
    corners = [min(chip.coords[1::-1] for chip in run) for run in runs]
    assert corners == sorted(corners)


def test_tensor_larger_than_a_host_is_left_to_the_network():
    chips = [HostedChip(x, y) for y in range(4) for x in range(4)]
    assert device_grid((1, 2, 8), chips).shape == (1, 2, 8)

"""What devices tell each other while gradients are computed: read from the compiled program."""

import re

import jax
import numpy as np
import optax
from flax import nnx

from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.rl.aggregation import Totals
from sr1_jax.rl.settings import default_config
from sr1_jax.rl.token_logp import token_logp
from sr1_jax.rl.update import Update, make_optimizer, place_model
from sr1_jax.sharding import compute_on, make_mesh, named

# No two products of these are alike.
ROWS, LENGTH, TRAINED = 8, 26, 7
CONFIG = DecoderConfig(
    vocab_size=88, width=24, layers=2, heads=4, kv_heads=2, head_dim=10, ff_width=68, remat="full"
)
COLLECTIVE = re.compile(r"= \(?(.*?)\)? (all-gather|all-reduce|all-to-all|reduce-scatter)\(")


def test_no_device_collects_activations_or_all_weights():
    """Beyond a layer's weights, and the hidden states of a chunk for the output head, only
    numbers a token travel."""
    mesh = make_mesh(2, 2, 2)
    graph, params = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
    optimizer = make_optimizer(optax.constant_schedule(1e-3), default_config())
    state = place_model(params, optimizer, mesh)

    def loss_fn(params, rows, totals, trained, packed):
        with compute_on(mesh):
            model = nnx.merge(graph, params)
            logp_BT, _ = token_logp(model, rows["ids_BT"], rows.trains_BT, max_wanted=trained)
        return {"surrogate": logp_BT.sum() / totals.tokens}, {}

    class Rows(dict):
        trains_BT = property(lambda self: self["trains_BT"])

    jax.tree_util.register_pytree_node(
        Rows, lambda rows: (list(rows.values()), list(rows)), lambda k, v: Rows(zip(k, v))
    )
    batch = jax.device_put(
        Rows(
            ids_BT=np.zeros((2 * ROWS, LENGTH), np.int32),
            trains_BT=np.ones((2 * ROWS, LENGTH), np.float32),
        ),
        named(mesh, "batch"),
    )
    update = Update("policy", loss_fn, optimizer, state, mesh)
    program = update.accumulate.lower(
        update.zeros(state.params), state.params, batch, np.arange(ROWS), Totals(*[1.0] * 4), (),
        length=LENGTH, trained=TRAINED,
    ).compile()  # fmt: skip
    sizes = {}
    for shapes, kind in COLLECTIVE.findall(program.as_text()):
        for dims in re.findall(r"\[([\d,]*)\]", shapes):
            shape = tuple(int(size) for size in dims.split(",") if size)
            sizes.setdefault(kind, set()).add(shape)
    largest = max(int(np.prod(shape)) for shapes in sizes.values() for shape in shapes)
    layer = max(CONFIG.width * CONFIG.ff_width, ROWS * TRAINED * CONFIG.width)
    # All rows' activations would be ROWS * LENGTH * width, logits ROWS * TRAINED * vocabulary.
    assert 0 < largest <= layer
    assert layer < min(ROWS * LENGTH * CONFIG.width, ROWS * TRAINED * CONFIG.vocab_size)

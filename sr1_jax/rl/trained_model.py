"""A model in training: what of it moves, what stays, and by which optimizer."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from sr1_jax.abstract import is_abstract, placed
from sr1_jax.models.decoder import Decoder, ValueModel
from sr1_jax.rl.update import ModelState, make_optimizer, place_model
from sr1_jax.sharding import tree_shardings


class TrainedModel:
    """How a model computes and which of its parameters train; holds no state of training.

    Args:
        model: of arrays or shapes; with adapters only these train, and the critic's head.
        schedule: learning rate by optimizer step.
        config: of the learner.
        mesh: the device mesh.

    Attributes:
        graph: merges with trained and frozen parameters to the model.
        frozen: parameters that stay as they are, on the mesh; shared with the model given.
        optimizer: of those that train.
        schedule: learning rate by optimizer step.
        abstract_state: shapes with shardings of parameters and optimizer state.
    """

    def __init__(
        self,
        model: Decoder | ValueModel,
        schedule: optax.Schedule,
        config: ml_collections.ConfigDict,
        mesh: Mesh,
    ):
        self._mesh = mesh
        self._offload_optimizer = "optimizer" in config.offload
        self.graph, self._given, frozen = nnx.split(model, model.trainable, ...)
        move = placed if is_abstract(nnx.state(model)) else jax.device_put
        self.frozen = move(frozen, tree_shardings(frozen, mesh))
        self.schedule = schedule
        self.optimizer = make_optimizer(schedule, config)
        self.abstract_state = self._place(shapes_of(self._given))

    @property
    def given(self) -> Any:
        """The parameters to start from: those that train, of the model given.

        Raises:
            RuntimeError: they were forgotten.
        """
        if self._given is None:
            raise RuntimeError(
                "The learner let go of the parameters it was made with when it was first given a "
                "state: ask for initial_state() before that."
            )
        return self._given

    def forget_given(self) -> None:
        """Lets go of the parameters to start from, so that nothing but a state holds any."""
        self._given = None

    def initial_state(self) -> ModelState:
        """A copy of the parameters given, and a fresh optimizer state."""
        return self._place(self.given)

    def _place(self, params: Any) -> ModelState:
        return place_model(
            params, self.optimizer, self._mesh, offload_optimizer=self._offload_optimizer
        )


def shapes_of(tree: Any) -> Any:
    """Shapes of a tree of arrays or shapes, with shardings where the leaves are placed."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
    )

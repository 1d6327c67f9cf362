"""What a run leaves behind that another run can be compared with."""

import jax
import numpy as np
import orbax.checkpoint as ocp

# Timings and the like, which no two runs share.
_UNSTEADY = ("seconds", "memory/", "goodput/", "mfu", "compilations", "_per_second")


def saved_state(workdir, step):
    """Everything in a checkpoint in NumPy, wherever it was placed."""
    folder = (workdir / "checkpoints" / str(step) / "state").resolve()
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder, restore_args=as_numpy)


def steady(row):
    unsteady = (*_UNSTEADY, "dev/")  # evaluations may differ in their number
    return {k: v for k, v in row.items() if not any(part in k for part in unsteady)}

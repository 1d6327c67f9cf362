"""What a run leaves behind that another run can be compared with."""

import orbax.checkpoint as ocp

# Timings and the like, which no two runs share.
_UNSTEADY = ("seconds", "memory/", "goodput/", "mfu", "compilations", "_per_second")


def saved_state(workdir, step):
    """Everything in a checkpoint, wherever it was placed."""
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore((workdir / "checkpoints" / str(step) / "state").resolve())


def steady(row):
    unsteady = (*_UNSTEADY, "dev/")  # evaluations may differ in their number
    return {k: v for k, v in row.items() if not any(part in k for part in unsteady)}

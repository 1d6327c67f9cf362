"""One of several processes: `python agreement_worker.py DO FOLDER HOST:PORT PROCESSES PROCESS`.

DO is the name of a function below; what it returns goes to FOLDER/PROCESS.pkl.
"""

import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np

from sr1_jax import agreement, cli, cluster


def tell(folder, process):
    """Everything that processes tell each other."""
    big = np.full(3_000_000 * process + 5, process, np.uint8)  # in several pieces, or in one
    shared, own = folder / "shared", folder / f"own-{process}"
    found = {
        "first": agreement.from_first(f"of {process}"),
        "gathered": [(x.size, int(x.max(initial=0))) for x in agreement.gather(big)],
        "leads": [agreement.lead_on_file_system(folder) for folder in (shared, own)],
        "is_first": cluster.is_first(),
    }

    def prepare(place):
        def make():
            made = not (place / "data").exists()
            if made:
                time.sleep(0.2)
                (place / "data").write_text("data")
            return made

        return make

    found["made"] = [agreement.once_a_file_system(place, prepare(place)) for place in (shared, own)]
    found["left"] = sorted(path.name for path in (*shared.iterdir(), *own.iterdir()))
    agreement.check_same("The config", {"a": {"b": [1, 2]}})
    try:
        agreement.check_same("The config", {"a": {"b": process}, "c": process})
    except ValueError as error:
        found["difference"] = str(error)
    print("only process 0 is heard", flush=True)
    return found


def fail(folder, process):
    """One raises while the others wait for it."""
    if process == 1:
        time.sleep(0.5)
        raise ValueError("questions.jsonl:7: no\nanswer")
    agreement.wait_for_all()


def _first(folder, process, error):
    """Process 1 raises, and process 0 another error before its watch can have heard of it."""
    agreement.wait_for_all()
    if process == 1:
        raise error
    time.sleep(0.3)
    raise ValueError("the second")


def transient_first(folder, process):
    _first(folder, process, TimeoutError("the first"))


def diverged_first(folder, process):
    _first(folder, process, FloatingPointError("the first"))


def terminated_first(folder, process):
    _first(folder, process, InterruptedError("the first"))


def surprise(folder, process):
    """One meets a defect of the program."""
    if process == 0:
        raise KeyError("lost")
    agreement.wait_for_all()


def die(folder, process):
    """Process 1 dies without a word."""
    agreement.wait_for_all()
    if process == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    agreement.wait_for_all()


def die_first(folder, process):
    """Process 0, which holds the coordination service, dies without a word."""
    agreement.wait_for_all()
    if process == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    agreement.wait_for_all()


def main(argv):
    do, folder, coordinator, processes, process = argv[1:]
    folder, process = Path(folder), int(process)
    cluster.join(coordinator, int(processes), process, wait_seconds=5 if do == "late" else 60)
    found = globals()[do](folder, process)
    (folder / f"{process}.pkl").write_bytes(pickle.dumps(found))


cli.run(main)

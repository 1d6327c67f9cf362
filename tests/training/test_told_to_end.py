"""SIGTERM in every phase of a run: one message, a code that says so, and nothing is lost."""

import signal
from pathlib import Path

import pytest
from deterministic_runs import alone, assert_equal_runs, wait_for

from sr1_jax.exit_codes import ExitCode

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("importable", "programs")]
STEPS = 4
# What a run prints when it comes to a phase.
PHASES = {
    "data": "reading the data",
    "supervised start": "supervised: ",
    "evaluation before": "before training",
    "steps": "training 1/",
    "evaluation after": "after training",
}


def command(workdir):
    config = Path(__file__).parent / "cluster_config.py"
    return [
        "-m", "sr1_jax.train", f"--config={config}", f"--workdir={workdir}",
        f"--config.steps={STEPS}", "--config.rollout.deterministic=True",
        "--config.log.groups=100", "--config.checkpoint.every=1", "--config.evaluation.every=0",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, importable, programs):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    log = workdir.parent / "log"
    assert alone(command(workdir), log).wait(600) == 0, log.read_text()[-3000:]
    return workdir


@pytest.mark.parametrize("phase", PHASES)
def test_told_to_end(phase, unbroken, tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "log"
    run = alone(command(workdir), log)
    assert wait_for(lambda: PHASES[phase] in log.read_text(), [run], 300), log.read_text()
    run.send_signal(signal.SIGTERM)
    assert run.wait(120) == ExitCode.TERMINATED, log.read_text()
    told = log.read_text()
    assert told.count("Told to end (SIGTERM)") == 1 and "Traceback" not in told
    assert told.rstrip().endswith("Start again to go on.")
    log.write_text("")
    assert alone(command(workdir), log).wait(600) == 0, log.read_text()[-3000:]
    assert_equal_runs(workdir, unbroken, STEPS)

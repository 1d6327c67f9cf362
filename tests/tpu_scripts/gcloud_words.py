"""The commands that are expected of the scripts, as lists of words."""

QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
DIRECT = ["gcloud", "compute", "tpus", "tpu-vm"]
PLACE = ["--project=my-project", "--zone=us-east5-b", "--quiet"]
STATUS = 'bash sr1_jax/worker.sh status 2>/dev/null || echo "SR1_WORKER $(hostname) idle"'
TRAIN = "-m sr1_jax.train --distributed --config=configs/demo.py --workdir=gs://bucket/runs/a"
START = f"bash sr1_jax/worker.sh start --log=gs://bucket/runs/a/logs {TRAIN}"
STOP = "bash sr1_jax/worker.sh stop --seconds=600"


def describe(surface=QUEUED, field="state.state"):
    return [*surface, "describe", "run", *PLACE, f"--format=value({field})"]


def ssh(command, node="all", worker="all"):
    return [
        *QUEUED,
        "ssh",
        "run",
        *PLACE,
        f"--node={node}",
        f"--worker={worker}",
        f"--command={command}",
    ]


def scp(*files, node="all", worker="all"):
    return [*QUEUED, "scp", *map(str, files), *PLACE, f"--node={node}", f"--worker={worker}"]

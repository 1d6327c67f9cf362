"""The exact commands of each script, their order, and what happens when one of them fails."""

import tarfile

import pytest
from gcloud_words import DIRECT, PLACE, QUEUED, STATUS, describe, scp, ssh


@pytest.mark.parametrize(
    "settings, flags",
    [
        (
            {},
            ["--runtime-version=v2-alpha-tpuv6e", "--node-id=run", "--spot"],
        ),
        (
            {"CAPACITY": "on-demand", "VALID_UNTIL": "6h30m"},
            [
                "--runtime-version=v2-alpha-tpuv6e",
                "--node-id=run",
                "--valid-until-duration=6h30m",
            ],
        ),
        (
            {"NODES": "3", "CAPACITY": "reserved", "RUNTIME_VERSION": "v2-alpha-new"},
            [
                "--runtime-version=v2-alpha-new",
                "--node-count=3",
                "--node-prefix=run",
                "--reserved",
            ],
        ),
        (
            {"NETWORK": "net", "SUBNETWORK": "sub", "SERVICE_ACCOUNT": "a@b.iam"},
            [
                "--runtime-version=v2-alpha-tpuv6e",
                "--node-id=run",
                "--spot",
                "--network=net",
                "--subnetwork=sub",
                "--service-account=a@b.iam",
            ],
        ),
    ],
)
def test_create_queued_resource(cloud, settings, flags):
    cloud.configure(**settings)
    cloud.play("states", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    result = cloud.run("create.sh")
    assert result.returncode == 0, result.stderr
    assert cloud.calls() == [
        [*QUEUED, "create", "run", *PLACE, "--accelerator-type=v6e-8", *flags],
        *[describe()] * 4,
    ]
    assert "run is PROVISIONING" in result.stderr
    assert "costs money until it is deleted" in result.stderr


def test_create_tpu_vm(cloud):
    cloud.configure(CREATE_WITH="tpu-vm", ACCELERATOR_TYPE="v4-8")
    cloud.play("states", "CREATING", "READY")
    assert cloud.run("create.sh").returncode == 0
    assert cloud.calls() == [
        [
            *DIRECT,
            "create",
            "run",
            *PLACE,
            "--accelerator-type=v4-8",
            "--version=tpu-ubuntu2204-base",
            "--spot",
        ],
        *[describe(DIRECT, "state")] * 2,
    ]


def test_create_can_come_back_at_once(cloud):
    assert cloud.run("create.sh", "--no-wait").returncode == 0
    assert cloud.verbs() == ["create"]


def test_create_stops_where_gcloud_fails(cloud):
    cloud.play("creates", "!RESOURCE_EXHAUSTED: Quota exceeded")
    result = cloud.run("create.sh")
    assert result.returncode == 1
    assert "Quota exceeded" in result.stderr
    assert "error: exit code 1 of: gcloud compute tpus queued-resources create run" in result.stderr
    assert cloud.verbs() == ["create"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "!NOT_FOUND: no resource"])
def test_create_gives_up_where_waiting_is_in_vain(cloud, state):
    cloud.play("states", "PROVISIONING", state)
    result = cloud.run("create.sh")
    assert result.returncode == 1
    shown = "ABSENT" if state.startswith("!") else state
    assert f"run is {shown}: it will not become ready by waiting" in result.stderr
    # The whole description says why, if there is one.
    assert cloud.verbs() == ["create", "describe", "describe"] + ["describe"] * (shown == state)


def test_waiting_survives_some_failing_looks_but_not_many(cloud):
    cloud.play("states", *["!UNAVAILABLE: later"] * 4, "ACTIVE")
    assert cloud.run("create.sh").returncode == 0
    cloud.calls()
    cloud.play("states", "!PERMISSION_DENIED: no")
    result = cloud.run("create.sh")
    assert result.returncode == 1
    assert "five times in a row gcloud could not tell the state of run" in result.stderr
    assert cloud.verbs() == ["create"] + ["describe"] * 5


def test_waiting_has_a_limit(cloud):
    cloud.configure(READY_TIMEOUT_SECONDS="90")
    cloud.replace("date", 'echo 40 >>"$FAKE/clock"; echo $((40 * $(wc -l <"$FAKE/clock")))')
    cloud.play("states", "PROVISIONING")
    result = cloud.run("create.sh")
    assert result.returncode == 1
    assert "run is still PROVISIONING after 90 s, and not ready" in result.stderr
    assert cloud.verbs() == ["create"] + ["describe"] * 3


def test_watch_shows_state_training_and_logs(cloud):
    assert cloud.run("watch.sh").returncode == 0
    assert cloud.calls() == [describe(), ssh(STATUS), ssh("bash sr1_jax/worker.sh log --lines=20")]


def test_watch_follows_one_worker(cloud):
    cloud.configure(ACCELERATOR_TYPE="v6e-16", NODES="2")
    assert cloud.run("watch.sh", "--follow", "--lines=5").returncode == 0
    log = "bash sr1_jax/worker.sh log --lines=5 --follow"
    assert cloud.calls() == [describe(), ssh(log, 0, 0)]
    assert cloud.run("watch.sh", "--follow", "--node=1", "--worker=all").returncode == 0
    assert cloud.calls()[1] == ssh(log.replace("5", "20"), 1, "all")
    for option in ("--worker=4", "--node=2", "--lines=x", "--worker=x"):
        assert cloud.run("watch.sh", option).returncode == 2
    assert cloud.calls() == []


def test_watch_of_what_is_not_ready(cloud):
    cloud.play("states", "WAITING_FOR_RESOURCES")
    result = cloud.run("watch.sh")
    assert result.returncode == 1
    assert "no log to show: run is WAITING_FOR_RESOURCES" in result.stderr
    result = cloud.run("watch.sh", "--state")
    assert result.returncode == 0
    assert "run is WAITING_FOR_RESOURCES" in result.stderr
    assert cloud.verbs() == ["describe", "describe"]


def test_fetch_from_a_bucket_needs_no_tpu(cloud, tmp_path):
    cloud.configure(WORKDIR="gs://my-data/runs/a")
    folder = tmp_path / "my results"
    rsync = [
        "gcloud",
        "storage",
        "rsync",
        "gs://my-data/runs/a",
        str(folder),
        "--project=my-project",
        "--recursive",
    ]
    assert cloud.run("fetch.sh", f"--to={folder}").returncode == 0
    assert folder.is_dir()
    assert cloud.calls() == [[*rsync, "--exclude=^(checkpoints|base|data|programs)/.*"]]
    assert cloud.run("fetch.sh", f"--to={folder}", "--checkpoints").returncode == 0
    assert cloud.calls() == [[*rsync, "--exclude=^programs/.*"]]


def test_fetch_brings_the_log_of_every_worker(cloud, tmp_path):
    cloud.configure(ACCELERATOR_TYPE="v6e-16", NODES="2")
    assert cloud.run("fetch.sh", f"--to={tmp_path}/out", "--logs").returncode == 0
    assert (tmp_path / "out/logs").is_dir()
    assert cloud.calls()[1:] == [
        scp("run:sr1_jax/train.log", tmp_path / f"out/logs/{n}-{w}.log", node=n, worker=w)
        for n in range(2)
        for w in range(4)
    ]


def test_fetch_from_a_disk_asks_the_first_worker(cloud, tmp_path):
    cloud.configure(WORKDIR="/data/my-run")
    packed = tmp_path / "home/.cache/sr1_jax/run/results.tar.gz"
    packed.parent.mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}")
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(tmp_path / "metrics.jsonl", "metrics.jsonl")
    assert cloud.run("fetch.sh", f"--to={tmp_path}/out", "--checkpoints").returncode == 0
    assert cloud.calls() == [
        ssh("bash sr1_jax/worker.sh pack /data/my-run --checkpoints", 0, 0),
        [
            *QUEUED,
            "scp",
            "run:sr1_jax/results.tar.gz",
            str(packed),
            *PLACE,
            "--node=0",
            "--worker=0",
        ],
    ]
    assert (tmp_path / "out/metrics.jsonl").read_text() == "{}"


def left_over(names="run"):
    filter_ = f'--filter=name~"/nodes/{names}$"'
    return [*DIRECT, "list", *PLACE, filter_, "--format=value(name.basename())"]


def test_teardown_deletes_and_looks_whether_it_is_gone(cloud):
    cloud.play("states", "ACTIVE", "DELETING", "!NOT_FOUND: gone")
    result = cloud.run("teardown.sh", "--yes")
    assert result.returncode == 0, result.stderr
    assert cloud.calls() == [
        describe(),
        [*QUEUED, "delete", "run", *PLACE, "--force"],
        describe(),
        describe(),
        left_over(),
    ]
    assert "nothing of run is left" in result.stderr


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yesterday\n"])
def test_teardown_asks_first(cloud, answer):
    result = cloud.run("teardown.sh", answer=answer)
    assert result.returncode == 1
    assert "Delete run (1 x v6e-8, ACTIVE) in us-east5-b of my-project" in result.stderr
    assert "nothing was deleted" in result.stderr
    assert "costs money until it is deleted" in result.stderr
    assert cloud.verbs() == ["describe"]


def test_teardown_deletes_after_a_yes(cloud):
    cloud.configure(CREATE_WITH="tpu-vm")
    cloud.play("states", "READY", "!NOT_FOUND: gone")
    assert cloud.run("teardown.sh", answer="y\n").returncode == 0
    assert cloud.calls()[1] == [*DIRECT, "delete", "run", *PLACE]


def test_teardown_deletes_nodes_that_are_left(cloud):
    cloud.configure(NODES="3")
    cloud.play("states", "!NOT_FOUND: no request")
    cloud.play("list", "run-0", "run-2")
    assert cloud.run("teardown.sh", "--yes").returncode == 0
    assert cloud.calls() == [
        describe(),
        left_over("run-(0|1|2)"),
        [*DIRECT, "delete", "run-0", *PLACE],
        [*DIRECT, "delete", "run-2", *PLACE],
    ]


def test_teardown_of_an_unknown_state_deletes_nothing_and_says_so(cloud):
    cloud.play("states", "!PERMISSION_DENIED: no")
    result = cloud.run("teardown.sh", "--yes")
    assert result.returncode == 1
    assert "cannot tell whether run exists; nothing was deleted, it may cost" in result.stderr
    assert cloud.verbs() == ["describe"]

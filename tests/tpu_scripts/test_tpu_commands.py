"""The exact commands of each script, their order, and what happens when one of them fails."""

import tarfile

import pytest

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


def scp(*files, node="all", worker="all"):
    return [*QUEUED, "scp", *map(str, files), *PLACE, f"--node={node}", f"--worker={worker}"]


def test_setup_copies_the_checkout_to_all_workers(cloud):
    cloud.configure(
        WORKDIR="gs://my-data/runs/a", MOUNT="yes", ACCELERATOR_TYPE="v6e-16", NODES="2",
        EXTRAS="wandb,parquet", workers=8,
    )  # fmt: skip
    result = cloud.run("setup.sh")
    assert result.returncode == 0, result.stderr
    code, lock = cloud.cache / "code.tar.gz", cloud.cache / "requirements.lock"
    assert cloud.calls() == [
        ssh("mkdir -p -m 700 sr1_jax"),
        scp(cloud.root / "tpu_scripts/worker.sh", code, "run:sr1_jax/"),
        ssh("bash sr1_jax/worker.sh choose --python=3.12 --extras=wandb,parquet", 0, 0),
        scp("run:sr1_jax/requirements.lock", f"{lock}.new", node=0, worker=0),
        scp(lock, "run:sr1_jax/requirements.lock"),
        ssh("bash sr1_jax/worker.sh setup --python=3.12 --mount=my-data"),
    ]
    assert lock.read_text() == "jax==1.2.3\n"
    with tarfile.open(code) as archive:
        names = archive.getnames()
    # New files go over; deleted and ignored ones do not.
    assert {"configs/demo.py", "tpu_scripts/worker.sh", "new file.txt"} <= set(names)
    assert not {"deleted.py", "runs/old.bin"} & set(names)


def test_setup_can_clone_instead(cloud):
    cloud.configure(REPO="https://example.com/a.git", BRANCH="v1", CONFIG="configs/new.py")
    cloud.lock()
    assert cloud.run("setup.sh").returncode == 0
    _, copy, _, setup = cloud.calls()
    assert not any("code.tar.gz" in word for word in copy)
    assert setup == ssh(
        "bash sr1_jax/worker.sh setup --python=3.12 --repo=https://example.com/a.git --branch=v1"
    )


def test_what_reads_buckets_is_installed_where_one_is_the_workdir(cloud):
    for settings, extras in (
        ({}, "--extras=gcs"),
        ({"EXTRAS": "wandb"}, "--extras=gcs,wandb"),
        ({"EXTRAS": "wandb,gcs"}, "--extras=wandb,gcs"),
        ({"WORKDIR": "/shared/runs/a"}, "--python=3.12"),
        ({"MOUNT": "yes"}, "--python=3.12"),
    ):
        cloud.configure(**settings)
        assert cloud.run("setup.sh", "--upgrade").returncode == 0
        (chosen,) = [call[-1] for call in cloud.calls() if "choose" in call[-1]]
        assert chosen.split()[-1] == extras


def test_versions_are_chosen_once_and_again_when_asked(cloud, tmp_path):
    lock = cloud.lock("jax==0.1\n")
    result = cloud.run("setup.sh")
    assert result.returncode == 0 and f"versions are those of {lock}" in result.stderr
    assert not any("choose" in call[-1] for call in cloud.calls())
    assert lock.read_text() == "jax==0.1\n"
    assert cloud.run("setup.sh", "--upgrade").returncode == 0
    assert sum("choose" in call[-1] for call in cloud.calls()) == 1
    assert lock.read_text() == "jax==1.2.3\n"
    own = tmp_path / "own.lock"
    own.write_text("jax==0.2\n")
    cloud.configure(LOCK_FILE=str(own))
    assert cloud.run("setup.sh").returncode == 0
    assert scp(own, "run:sr1_jax/requirements.lock") in cloud.calls()
    refused = cloud.run("setup.sh", "--upgrade")
    assert refused.returncode == 2 and f"LOCK_FILE={own} chooses the versions" in refused.stderr
    cloud.configure(LOCK_FILE="/no/lock")
    assert "LOCK_FILE=/no/lock: there is no such file" in cloud.run("setup.sh").stderr


def test_a_choice_that_fails_leaves_no_lock(cloud):
    (cloud.fake / "fail_at").write_text("3")
    result = cloud.run("setup.sh")
    assert result.returncode == 1 and "worker.sh choose" in result.stderr
    assert not list(cloud.cache.glob("*.lock*"))


@pytest.mark.parametrize("script", ["setup.sh", "gke.sh apply"])
def test_the_token_is_never_shown(cloud, tmp_path, script):
    token = tmp_path / "my token"
    token.write_text("hf_verysecret\n")
    cloud.configure(HF_TOKEN_FILE=str(token))
    for options in ([], ["--dry-run"]):
        result = cloud.run(script, *options)
        assert result.returncode == 0, result.stderr
        assert "hf_verysecret" not in result.stdout + result.stderr
    calls = cloud.calls()
    assert "hf_verysecret" not in str(calls)
    assert any(str(token) in word for call in calls for word in call)


def test_a_worker_that_does_not_answer_is_an_error(cloud):
    cloud.configure(ACCELERATOR_TYPE="v6e-16", workers=3)
    cloud.lock()
    for script, answer in (("setup.sh", "is set up"), ("launch.sh", "is started")):
        result = cloud.run(script)
        assert result.returncode == 1
        assert f"'{answer}' was answered by 3 of 4 workers" in result.stderr
        assert "ssh-add" in result.stderr


def test_launch(cloud):
    assert cloud.run("launch.sh").returncode == 0
    assert cloud.calls() == [ssh(START)]
    cloud.configure(GRACE_SECONDS="30")
    assert cloud.run("launch.sh", "--restart", "--", "--config.seed=3").returncode == 0
    stop = STOP.replace("600", "30")
    assert cloud.calls() == [ssh(stop), ssh(f"{START} --config.seed=3")]
    assert cloud.run("launch.sh", "--stop").returncode == 0
    assert cloud.calls() == [ssh(stop)]


def test_the_environment_goes_over_as_a_file(cloud):
    """That of PASS_ENV from this shell, ENV over it; nobody sees it but who asks for it."""
    cloud.env |= {"WANDB_API_KEY": "very secret", "XLA_FLAGS": "--a=1 --b", "JAX_PLATFORMS": "cpu"}
    cloud.env |= {"WANDB_MODE": "online"}
    cloud.configure(
        "ENV=LIBTPU_INIT_ARGS=--x=1 --y='2'", "ENV=WANDB_MODE=offline", PASS_ENV="XLA_FLAGS WANDB_*"
    )
    result = cloud.run("launch.sh")
    assert result.returncode == 0, result.stderr
    file = cloud.cache / "environment"
    calls = cloud.calls()
    assert calls == [
        scp(file, "run:sr1_jax/environment"),
        ssh(START.replace("/logs", "/logs --environment")),
    ]
    lines = [
        "LIBTPU_INIT_ARGS=--x=1 --y='2'",
        "WANDB_API_KEY=very secret",
        "WANDB_MODE=offline",
        "XLA_FLAGS=--a=1 --b",
    ]
    assert file.read_text().splitlines() == lines and file.stat().st_mode & 0o777 == 0o600
    shown = cloud.run("launch.sh", "--dry-run")
    assert "very secret" not in shown.stdout + shown.stderr + result.stdout + result.stderr
    assert cloud.run("launch.sh", "--print-environment").stdout.splitlines() == lines
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"PASS_ENV": "NOT_SET_HERE"}, "PASS_ENV=NOT_SET_HERE: NOT_SET_HERE is not set in this"),
        ({"PASS_ENV": "A-B"}, "PASS_ENV=A-B: expected names of environment variables"),
        ({"ENV": "no value"}, "ENV=no value: expected NAME=value"),
    ],
)
def test_an_environment_that_cannot_be(cloud, settings, complaint):
    cloud.configure(**settings)
    result = cloud.run("launch.sh")
    assert result.returncode == 2 and complaint in result.stderr
    assert cloud.calls() == []


def test_a_variable_of_several_lines_is_refused(cloud):
    cloud.env["XLA_FLAGS"] = "a\nb"
    cloud.configure(PASS_ENV="XLA_FLAGS")
    result = cloud.run("launch.sh")
    assert result.returncode == 1 and "XLA_FLAGS has several lines" in result.stderr
    assert cloud.calls() == []


def test_a_workdir_that_needs_no_mount(cloud):
    cloud.configure(WORKDIR="/shared/runs/a")
    assert cloud.run("launch.sh").returncode == 0
    assert cloud.calls()[0][-1].endswith(" --workdir=/shared/runs/a")
    assert cloud.run("setup.sh").returncode == 0
    assert cloud.calls()[-1][-1].endswith("worker.sh setup --python=3.12")


def test_launch_on_a_tpu_vm_names_no_node(cloud):
    cloud.configure(CREATE_WITH="tpu-vm")
    assert cloud.run("launch.sh").returncode == 0
    command = f"--command={START}"
    assert cloud.calls() == [[*DIRECT, "ssh", "run", *PLACE, "--worker=all", command]]


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

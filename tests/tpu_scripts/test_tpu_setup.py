"""Set-up and launch: what goes to the workers, which versions they get, how training starts."""

import tarfile

import pytest
from gcloud_words import DIRECT, PLACE, START, STOP, scp, ssh


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

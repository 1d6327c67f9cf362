"""keep.sh: a run survives preemptions and crashes, a bounded number of times."""

import pytest

from sr1_jax.exit_codes import FINAL, ExitCode

SET_UP = ["ssh", "scp", "scp", "ssh:setup"]  # with versions that were chosen before
BRING_UP = ["create", "describe", *SET_UP, "ssh:stop", "ssh:start"]
ABSENT = "!NOT_FOUND: none"
NO_SLEEP = 'echo "$1" >>"$FAKE/slept"'  # the delays without the waiting


@pytest.fixture(autouse=True)
def pinned(cloud):
    cloud.lock()


def looks(*what):
    """A look at the state and, if that is ready, at training."""
    return [verb for word in what for verb in ("describe", *["ssh:status"] * (word == "ready"))]


def test_a_run_without_trouble(cloud):
    cloud.play("states", ABSENT, "ACTIVE")
    cloud.play("statuses", "running, process 1", "running, process 1", "finished")
    result = cloud.run("keep.sh")
    assert result.returncode == 0, result.stderr
    assert cloud.verbs() == ["describe", *BRING_UP, *looks("ready", "ready", "ready")]
    assert result.stderr.count("run is ACTIVE, training is running") == 1
    assert "training is finished" in result.stderr
    assert "costs money until it is deleted" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("lost", ["SUSPENDED", "FAILED"])
def test_a_preempted_run_is_made_anew_with_the_same_arguments(cloud, lost):
    states = [ABSENT, "ACTIVE", "ACTIVE", "SUSPENDING", lost]
    cloud.play("states", *states, lost, ABSENT, "PROVISIONING", "ACTIVE")
    cloud.play("statuses", "running, process 1", "finished")
    result = cloud.run("keep.sh", "--", "--config.seed=3")
    assert result.returncode == 0, result.stderr
    assert f"run is {lost}; restart 1 of at most 20 in 0 s: make_anew" in result.stderr
    calls = cloud.calls()
    starts = [call for call in calls if "worker.sh start" in call[-1]]
    assert len(starts) == 2 and starts[0] == starts[1]
    assert starts[0][-1].endswith("--workdir=gs://bucket/runs/a --config.seed=3")
    creates = [call for call in calls if call[4] == "create"]
    assert len(creates) == 2 and creates[0] == creates[1]


def test_the_order_of_a_recovery(cloud):
    cloud.play("states", "ACTIVE", "SUSPENDED", "SUSPENDED", ABSENT, "PROVISIONING", "ACTIVE")
    cloud.play("statuses", "running, process 1", "finished")
    assert cloud.run("keep.sh").returncode == 0
    assert cloud.verbs() == [
        *looks("ready", "over"),
        # teardown, until it is gone
        *("describe", "delete", "describe", "list"),
        *("create", "describe", "describe", *SET_UP, "ssh:stop", "ssh:start"),
        *looks("ready"),
    ]


def test_a_preempted_tpu_vm(cloud):
    cloud.configure(CREATE_WITH="tpu-vm")
    cloud.play("states", "READY", "PREEMPTED", "PREEMPTED", ABSENT, "READY")
    cloud.play("statuses", "running, process 1", "finished")
    assert cloud.run("keep.sh").returncode == 0
    assert cloud.verbs().count("create") == 1


def test_a_crash_is_launched_again_on_the_same_tpus(cloud):
    cloud.play("statuses", "running, process 1", "failed, exit code 1", "finished")
    result = cloud.run("keep.sh")
    assert result.returncode == 0, result.stderr
    assert "SR1_WORKER host-0 failed, exit code 1" in result.stderr
    assert cloud.verbs() == [
        *looks("ready", "ready"),
        *("ssh:stop", "ssh:start"),
        *looks("ready"),
    ]


@pytest.mark.parametrize("code", sorted(FINAL - {ExitCode.DONE}))
def test_what_would_fail_again_is_not_started_again(cloud, code):
    """At the first try, on one worker or on all, with the code and the error of training."""
    cloud.configure(ACCELERATOR_TYPE="v6e-16", workers=4)
    failed = f"failed, exit code {code:d}: data.dev=x.jsonl: there is no such file"
    cloud.play("statuses", "running, process 1", failed)
    result = cloud.run("keep.sh")
    assert result.returncode == code
    assert "data.dev=x.jsonl: there is no such file" in result.stderr
    assert f"training failed with exit code {code:d}, after which it is not" in result.stderr
    assert cloud.verbs() == looks("ready", "ready")


@pytest.mark.parametrize("code", [1, 27, 75, 80, 127, 134, 137, 143])
def test_what_may_pass_is_started_again(cloud, code):
    failed = f"failed, exit code {code}: process 3 went away"
    cloud.play("statuses", "running, process 1", failed, "finished")
    assert cloud.run("keep.sh").returncode == 0
    assert cloud.verbs().count("ssh:start") == 1


def test_the_scripts_know_the_final_codes_of_the_program(cloud):
    command = f'source "{cloud.root}/tpu_scripts/lib.sh"; echo "${{FINAL_CODES[*]}}"'
    shown = cloud.shell(["bash", "-c", command]).stdout
    assert shown.split() == [str(int(code)) for code in sorted(FINAL - {ExitCode.DONE})]


def test_a_run_that_failed_for_good_is_set_up_and_launched_when_asked_again(cloud):
    cloud.play("statuses", "failed, exit code 2: a typing error", "running, process 1", "finished")
    assert cloud.run("keep.sh").returncode == 0
    assert cloud.verbs() == [
        *looks("ready"), *SET_UP, "ssh:stop", "ssh:start", *looks("ready", "ready")
    ]  # fmt: skip


def test_tpus_without_code_are_taken_over(cloud):
    cloud.play("statuses", "idle", "finished")
    result = cloud.run("keep.sh")
    assert "run exists and is ACTIVE: taken over" in result.stderr
    assert cloud.verbs() == [*looks("ready"), *BRING_UP[2:], *looks("ready")]


def test_a_worker_that_is_missing_from_the_answers_is_no_running_training(cloud):
    cloud.configure(ACCELERATOR_TYPE="v6e-16", MAX_RESTARTS="0", workers=3)
    cloud.play("statuses", "running, process 1")
    result = cloud.run("keep.sh")
    assert result.returncode == 1
    assert "workers of run do not answer (3 of 3)" in result.stderr
    assert cloud.verbs() == looks("ready", "ready", "ready", "ready")


def test_workers_that_do_not_answer_three_times_are_replaced(cloud):
    cloud.play("statuses", "running, process 1", *["!no route to host"] * 3, "finished")
    cloud.play("states", *["ACTIVE"] * 5, ABSENT, "ACTIVE")
    assert cloud.run("keep.sh").returncode == 0
    assert cloud.verbs().count("create") == 1


def test_restarts_are_bounded(cloud):
    cloud.configure(MAX_RESTARTS="2")
    cloud.play("statuses", "failed, exit code 1")
    result = cloud.run("keep.sh")
    assert result.returncode == 1
    assert "training failed; given up after MAX_RESTARTS=2 restarts" in result.stderr
    assert "costs money until it is deleted" in result.stderr.splitlines()[-1]
    assert cloud.verbs().count("ssh:start") == 2


def test_giving_up_can_delete(cloud):
    cloud.configure(MAX_RESTARTS="0")
    cloud.play("states", "ACTIVE", "ACTIVE", "ACTIVE", ABSENT)
    cloud.play("statuses", "failed, exit code 1")
    assert cloud.run("keep.sh", "--teardown").returncode == 1
    assert cloud.verbs()[-4:] == ["describe", "delete", "describe", "list"]


def test_a_quota_that_is_used_up_is_tried_again_with_growing_delays(cloud):
    cloud.configure(MAX_RESTARTS="4", BACKOFF_SECONDS="60")
    cloud.replace("sleep", NO_SLEEP)
    cloud.play("states", ABSENT)
    cloud.play("creates", "!RESOURCE_EXHAUSTED: Quota exceeded")
    result = cloud.run("keep.sh")
    assert result.returncode == 1
    assert "run is gone; given up after MAX_RESTARTS=4 restarts" in result.stderr
    assert (cloud.fake / "slept").read_text().split() == ["60", "120", "240", "480"]
    assert cloud.verbs() == ["describe", "create", *["describe", "create"] * 4, "describe"]


def test_a_healthy_look_resets_the_delay(cloud):
    cloud.replace("sleep", NO_SLEEP)
    cloud.configure(BACKOFF_SECONDS="7")
    crash = "failed, exit code 1"
    cloud.play("statuses", "running, 1", crash, crash, "running, 1", crash, "finished")
    assert cloud.run("keep.sh").returncode == 0
    assert (cloud.fake / "slept").read_text().split() == ["7", "14", "7"]


def test_a_cloud_that_cannot_tell_is_not_asked_for_ever(cloud):
    cloud.play("states", "!UNAVAILABLE: try later")
    result = cloud.run("keep.sh")
    assert result.returncode == 1
    assert "ten times in a row gcloud could not tell the state of run" in result.stderr
    assert set(cloud.verbs()) == {"describe"}


def test_spot_without_lasting_storage_is_warned_of(cloud):
    warning = "must be storage that outlives the TPU VMs"
    assert warning not in cloud.run("keep.sh", "--dry-run").stderr
    cloud.configure(WORKDIR="/tmp/run")
    assert warning in cloud.run("keep.sh", "--dry-run").stderr


def test_a_dry_run_shows_the_recovery_as_comments(cloud):
    shown = cloud.run("keep.sh", "--dry-run").stdout
    _, after = shown.split("# after a preemption, at most 20 times:\n")
    assert after and all(line.startswith("# ") for line in after.splitlines())
    assert "queued-resources delete run" in after and "queued-resources create run" in after

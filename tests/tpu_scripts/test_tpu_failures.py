"""Every script, failing at each of its steps: it stops there, names the command, and says what may
cost money; what is retried is retried."""

import pytest
from test_tpu_dry_run import DRY_RUNS

# Calls that only look; where one fails the script goes on, asks again, or stops.
LOOKS = ("describe", "list")
# What is done whatever became of an earlier step: pools that are deleted one by one.
GO_ON = ("gke.sh delete-pools",)
STOPPING = [row for row in DRY_RUNS if row[0] != "keep.sh"]


def count_calls(cloud, script, options, states):
    cloud.play("states", *states)
    result = cloud.run(script, *options)
    assert result.returncode == 0, result.stderr
    return cloud.calls()


@pytest.mark.parametrize(
    ("script", "options", "states"), STOPPING, ids=[row[0].replace(" ", "-") for row in STOPPING]
)
def test_a_script_stops_at_the_step_that_fails(cloud, tmp_path, script, options, states):
    token = tmp_path / "token"
    token.write_text("hf_secret")
    settings = {"HF_TOKEN_FILE": str(token), "NODES": "2", "ACCELERATOR_TYPE": "v6e-16"}
    cloud.configure("ENV=XLA_FLAGS=--a=1", **settings, workers=8)
    whole = count_calls(cloud, script, options, states)
    assert whole
    for step, call in enumerate(whole, start=1):
        for file in ("count", "fail_at"):
            (cloud.fake / file).unlink(missing_ok=True)
        for kept in cloud.cache.glob("requirements.lock*"):
            kept.unlink()
        (cloud.fake / "fail_at").write_text(str(step))
        cloud.play("states", *states)
        result = cloud.run(script, *options)
        calls = cloud.calls()
        if any(word in LOOKS for word in call) and result.returncode == 0:
            continue  # it asked again
        assert result.returncode == 1, (step, call, result.stderr)
        assert "the planned failure" in result.stderr
        assert calls[:step] == whole[:step]
        if script not in GO_ON:
            assert not [c for c in calls[step:] if not any(word in LOOKS for word in c)]
        assert "tpu_scripts: error: " in result.stderr
        if script in ("create.sh", "teardown.sh", "gke.sh pools", "gke.sh delete-pools"):
            assert "cost" in result.stderr


@pytest.mark.parametrize("step", range(1, 13))
def test_keep_goes_on_after_a_step_that_fails_once(cloud, step):
    """Whatever fails, once: the run is finished in the end, on TPUs made once or twice."""
    (cloud.fake / "fail_at").write_text(str(step))
    (cloud.fake / "live").touch()
    result = cloud.run("keep.sh")
    assert result.returncode == 0, result.stderr
    assert "training is finished" in result.stderr
    assert len((cloud.fake / "count").read_text()) >= step
    verbs = cloud.verbs()
    assert "ssh:start" in verbs and 1 <= verbs.count("create") <= 2


def test_keep_ends_when_a_step_fails_for_ever(cloud):
    cloud.configure(MAX_RESTARTS="3")
    cloud.replace("git", "exit 1")  # no code can be packed: setup fails each time
    cloud.play("states", "!NOT_FOUND: none", "ACTIVE")
    cloud.play("statuses", "idle")
    result = cloud.run("keep.sh")
    assert result.returncode == 1
    assert "given up after MAX_RESTARTS=3 restarts" in result.stderr
    assert "costs money until it is deleted" in result.stderr.splitlines()[-1]

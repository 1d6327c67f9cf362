"""A dry run prints the very calls of the real run, as a shell script."""

import subprocess

import pytest

AWKWARD = """ARG=--config.data.note=it's "two  words" & $HOME `x` \\ (1) *"""


GONE = "!NOT_FOUND: none"
DRY_RUNS = [
    ("create.sh", [], ["ACTIVE"]),
    ("setup.sh", [], ["ACTIVE"]),
    ("launch.sh", ["--restart", "--", "--config.a='b c'"], ["ACTIVE"]),
    ("watch.sh", [], ["ACTIVE"]),
    ("fetch.sh", ["--to=out put"], ["ACTIVE"]),
    ("teardown.sh", ["--yes"], ["ACTIVE", GONE]),
    ("keep.sh", ["--teardown"], [GONE, "PROVISIONING", "ACTIVE", "ACTIVE", "ACTIVE", GONE]),
    ("gke.sh apply", ["--", "--config.a='b c'"], []),
    ("gke.sh watch", [], []),
    ("gke.sh delete", ["--yes"], []),
    ("gke.sh pools", [], []),
    ("gke.sh delete-pools", ["--yes"], []),
    ("gke.sh image", [], []),
]


@pytest.mark.parametrize(
    "create_with, script, options, states",
    [("queued-resource", *row) for row in DRY_RUNS]
    + [("tpu-vm", *row) for row in DRY_RUNS if row[0] in ("teardown.sh", "keep.sh")],
)
def test_a_dry_run_is_a_script_of_the_real_run(
    cloud, tmp_path, create_with, script, options, states
):
    """It calls nothing itself, and bash makes of its output the calls of the real run."""
    if create_with == "tpu-vm":
        states = [state.replace("ACTIVE", "READY") for state in states]
    token = tmp_path / "token"
    token.write_text("hf_secret")
    cloud.configure(AWKWARD, CREATE_WITH=create_with, HF_TOKEN_FILE=str(token))
    shown = cloud.run(script, "--dry-run", *[o for o in options if o != "--yes"])
    assert shown.returncode == 0, shown.stderr
    assert cloud.calls() == []

    cloud.play("states", *states)
    real = cloud.run(script, *options)
    assert real.returncode == 0, real.stderr
    expected = cloud.calls()

    cloud.play("states", *states)
    subprocess.run(["bash"], input=shown.stdout, text=True, env=cloud.env, cwd=tmp_path, check=True)
    assert cloud.calls() == expected
    assert len(expected) > 0

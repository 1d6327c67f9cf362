"""Settings files: what is read, and what is refused before any command runs."""

import pytest

SCRIPTS = (
    "create.sh",
    "setup.sh",
    "launch.sh",
    "watch.sh",
    "fetch.sh",
    "teardown.sh",
    "keep.sh",
    "gke.sh apply",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_checks_the_settings_before_anything_else(cloud, script):
    cloud.configure(ZONE="us-east5")
    result = cloud.run(script, *(["--yes"] if "teardown" in script else []))
    assert result.returncode == 2
    assert f"{cloud.settings}:2: ZONE=us-east5: expected a zone such as us-east5-b" in result.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize(
    "key, value, line, complaint",
    [
        ("PROJECT", None, None, "PROJECT is missing; expected a Google Cloud project id"),
        ("PROJECT", "My Project", 1, "PROJECT=My Project: expected a Google Cloud project id"),
        ("ZONE", "nowhere", 2, "ZONE=nowhere: expected a zone"),
        ("NAME", "Run_1", 3, "NAME=Run_1: expected at most 40 lower-case"),
        ("NAME", "a" * 41, 3, "expected at most 40"),
        ("ACCELERATOR_TYPE", "v5e-16", 4, "ACCELERATOR_TYPE=v5e-16: unknown accelerator type"),
        ("ACCELERATOR_TYPE", "v6e-12", 4, "ACCELERATOR_TYPE=v6e-12: unknown accelerator type"),
        ("ACCELERATOR_TYPE", "v4-12", 4, "unknown accelerator type"),
        ("ACCELERATOR_TYPE", "v5p-08", 4, "unknown accelerator type"),
        ("ACCELERATOR_TYPE", "tpu7x-16", 4, "Google has this chip on Kubernetes only; use gke.sh"),
        ("ACCELERATOR_TYPE", "tpu", 4, "unknown accelerator type"),
        ("ACCELERATOR_TYPE", None, None, "ACCELERATOR_TYPE is missing; expected a type such as"),
        ("CAPACITY", "cheap", 5, "CAPACITY=cheap: expected spot, on-demand or reserved"),
        ("CONFIG", "configs/none.py", 6, "CONFIG=configs/none.py: there is no such file in"),
        ("WORKDIR", "runs/a", 7, "WORKDIR=runs/a: expected gs://bucket/folder or an absolute"),
        ("POLL_SECONDS", "soon", 8, "POLL_SECONDS=soon: expected whole seconds"),
        ("NODES", "0", 13, "NODES=0: expected the number of slices"),
        ("VALID_UNTIL", "tomorrow", 13, "VALID_UNTIL=tomorrow: expected how long"),
        ("HF_TOKEN_FILE", "/no/token", 13, "HF_TOKEN_FILE=/no/token: there is no such file"),
        ("RUNTIME_VERSION", "v2-alpha-tpuv5", 13, "v6e-8 needs v2-alpha-tpuv6e"),
        ("ZOEN", "x", 13, "ZOEN=x: unknown key; there are: ARG ENV PROJECT ZONE"),
    ],
)
def test_a_bad_value_is_named_with_file_line_key_and_value(cloud, key, value, line, complaint):
    cloud.configure(**{key: value})
    result = cloud.run("create.sh", "--dry-run")
    assert result.returncode == 2
    assert result.stdout == ""
    place = f"{cloud.settings}:" + (f"{line}: " if line else " ")
    assert result.stderr.startswith(f"tpu_scripts: error: {place}")
    assert complaint in result.stderr
    assert result.stderr.count("error:") == 1


def test_all_problems_are_listed_at_once(cloud):
    cloud.configure("this is no setting", 'BRANCH="main', "NAME=again", ZONE="x", NODES="many")
    errors = cloud.run("create.sh").stderr
    assert errors.count("tpu_scripts: error:") == 5
    assert ":14: 'this is no setting' is not KEY=value" in errors
    assert ':15: BRANCH="main: the quote is not closed' in errors
    assert ":16: NAME=again: already set in line 3" in errors


def test_multislice_and_time_limit_need_a_queued_resource(cloud):
    cloud.configure(CREATE_WITH="tpu-vm", NODES="2", VALID_UNTIL="6h")
    errors = cloud.run("create.sh").stderr
    assert "NODES=2: several slices need CREATE_WITH=queued-resource" in errors
    assert "VALID_UNTIL=6h: only a queued resource waits" in errors


def test_quotes_comments_and_windows_lines_are_read(cloud):
    cloud.configure(
        "# a comment",
        "",
        '  BRANCH="v 1#2"   # not a branch name',
        NAME="'other'  # the name",
        ZONE="europe-west4-a\r",
    )
    errors = cloud.run("create.sh", "--dry-run").stderr
    assert errors.count("error:") == 1 and "BRANCH=v 1#2: expected a branch" in errors
    cloud.configure(NAME="'other'  # the name", ZONE="europe-west4-a\r")
    output = cloud.run("create.sh", "--dry-run").stdout
    assert "create other --project=my-project --zone=europe-west4-a --quiet" in output


def test_nothing_in_a_settings_file_is_executed(cloud, tmp_path):
    cloud.configure(f"ARG=$(touch {tmp_path}/touched)", f"BRANCH=`touch {tmp_path}/touched`")
    assert cloud.run("launch.sh").returncode == 2
    assert not (tmp_path / "touched").exists()


def test_variables_of_the_shell_are_no_settings(cloud):
    cloud.env["ZONE"] = "us-west4-a"
    cloud.configure(ZONE=None)
    assert "ZONE is missing" in cloud.run("create.sh", "--dry-run").stderr


def test_the_example_is_valid(cloud):
    cloud.settings = cloud.root / "tpu_scripts" / "example.env"
    for script in SCRIPTS:
        result = cloud.run(script, "--dry-run")
        assert result.returncode == 0, result.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_wrong_options(cloud, script):
    name, *action = script.split()
    path = str(cloud.root / "tpu_scripts" / name)
    shown = cloud.shell([path, "--help"])
    assert shown.returncode == 0
    assert f"tpu_scripts/{name}" in shown.stdout and "--dry-run" in shown.stdout
    assert "shellcheck" not in shown.stdout
    for command, complaint in [
        ([path, *action], "which settings file?"),
        ([path, *action, "none.env"], "none.env: no such settings file"),
        ([path, *action, str(cloud.settings), "--frobnicate"], "unknown option --frobnicate"),
        ([path, *action, str(cloud.settings), "b.env"], "one settings file, not two"),
    ]:
        result = cloud.shell(command)
        assert result.returncode == 2
        assert complaint in result.stderr and f"see {name} --help" in result.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize(
    "accelerator, runtime, workers",
    [
        ("v4-8", "tpu-ubuntu2204-base", 1),
        ("v4-32", "tpu-ubuntu2204-base", 4),
        ("v5litepod-8", "v2-alpha-tpuv5-lite", 1),
        ("v5litepod-16", "v2-alpha-tpuv5-lite", 4),
        ("v5litepod-256", "v2-alpha-tpuv5-lite", 64),
        ("v5p-32", "v2-alpha-tpuv5", 4),
        ("v5p-384", "v2-alpha-tpuv5", 48),
        ("v5p-12288", "v2-alpha-tpuv5", 1536),
        ("v6e-1", "v2-alpha-tpuv6e", 1),
        ("v6e-64", "v2-alpha-tpuv6e", 16),
    ],
)
def test_runtime_and_workers_follow_from_the_accelerator_type(cloud, accelerator, runtime, workers):
    cloud.configure(ACCELERATOR_TYPE=accelerator, workers=workers)
    assert f" --runtime-version={runtime} " in cloud.run("create.sh", "--dry-run").stdout
    assert f"on each worker, {workers} in all" in cloud.run("setup.sh", "--dry-run").stdout

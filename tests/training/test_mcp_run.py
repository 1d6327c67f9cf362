"""A whole tiny run of the demo world with a tool of a Model Context Protocol server, by flags."""

import sys
from pathlib import Path

import pytest

from sr1_jax.environment import mcp_session
from sr1_jax.evaluation.metrics import read_metrics
from sr1_jax.train import main

SERVER = Path(__file__).parents[1] / "environment" / "mcp_server.py"


@pytest.fixture
def flags(tmp_path):
    """A command line, but for the tool's."""
    yield [
        "train",
        f"--config={Path(__file__).with_name('tiny_config.py')}",
        f"--workdir={tmp_path / 'run'}",
        "--config.steps=2",
        "--config.evaluation.final_questions=0",
        '--config.environment.tools=("search", "sr1_jax.environment.mcp:lookup")',
        f"--config.environment.options.lookup.command={sys.executable} {SERVER} stdio",
    ]
    mcp_session.close_all()


@pytest.mark.slow
def test_a_run_of_the_demo_world(flags, tmp_path):
    main([*flags, "--config.environment.options.lookup.tool=lookup"])
    rows = read_metrics(tmp_path / "run")
    assert [row["rollout/lookup_errors"] for row in rows] == [0, 0]


def test_a_tool_that_is_not_there_is_told_before_the_data_is_read(flags, tmp_path):
    with pytest.raises(ValueError, match=r"options\.lookup\.tool='lokup': the server has add, "):
        main([*flags, "--config.environment.options.lookup.tool=lokup"])
    assert not (tmp_path / "run").exists()

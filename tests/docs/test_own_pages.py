"""What the guides show of one's own tool, retriever and reward works as it stands there, in a
folder outside the package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("own_tool", "own_retriever", "own_reward")
TINY = ROOT / "tests" / "training" / "tiny_config.py"


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of all pages, which say their own names."""
    for page in PAGES:
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            name = re.match(r"# (\w+\.py)\n", block)[1]
            (tmp_path / name).write_text(block)
    assert {p.name for p in tmp_path.iterdir()} == {"calculator.py", "first_words.py", "brevity.py"}
    return tmp_path


def test_a_run_with_all_three(folder):
    """Two steps of training, from a folder that is not the package's, by import paths alone."""
    command = [
        sys.executable, "-m", "sr1_jax.train", f"--config={TINY}", "--workdir=run",
        "--config.steps=2",
        "--config.environment.tools=('search', 'calculator:Calculator')",
        "--config.environment.options.calculate.timeout_seconds=2.0",
        "--config.environment.options.calculate.longest=40",
        "--config.retrieval.kind=first_words:open_first_words",
        "--config.retrieval.options.most=500",
        "--config.reward.terms=(('em', 1.0), ('brevity:few_searches', 0.1), "
        "('brevity:no_repeats', 0.1), ('brevity:above_average', 0.1))",
    ]  # fmt: skip
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        names = ("em", "brevity:few_searches", "brevity:no_repeats", "brevity:above_average")
        assert all(f"reward/{name}" in row for name in names)
        assert 0 < row["reward/brevity:few_searches"] <= 1


@pytest.mark.parametrize(
    ("request_text", "shown", "value"),
    [
        ("6*7", "42", 42),
        ("2+3*4-1", "13", 13),
        ("6/2", "That is no sum", None),
        ("(", "That", None),
    ],
)
def test_the_calculator(folder, monkeypatch, request_text, shown, value):
    from sr1_jax.training.settings import default_config

    monkeypatch.syspath_prepend(folder)
    import calculator

    (found,) = calculator.Calculator(default_config()).call([request_text])
    assert found.text.startswith(shown) and found.record == {"value": value}
    sys.modules.pop("calculator")

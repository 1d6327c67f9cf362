"""Settings made of another file's, and the files that say so."""

import pytest

from sr1_jax.config_files import load_config
from sr1_jax.experiments.derived import derived_config, derived_file, split_argument
from sr1_jax.training.settings import unknown_setting

PHASES = (dict(name="a'b", examples="answers", epochs=2.0, learning_rate=1e-3),)


def test_overrides_come_before_values():
    config = derived_config(
        "configs/demo.py", [("steps", "7"), ("seed", "3")], {"seed": 5, "rollout.passages": 2}
    )
    assert (config.steps, config.seed, config.rollout.passages) == (7, 5, 2)


def test_a_file_gives_the_same_settings_from_anywhere(tmp_path, monkeypatch):
    overrides = [("rollout.slots", "16"), ("environment.options.search.threads", "2")]
    values = {"seed": 2, "warm_start.phases": PHASES, "base.workdir": "runs/'x'\\"}
    path = tmp_path / "made.py"
    path.write_text(derived_file("A run.", "configs/demo.py", overrides, values))
    monkeypatch.chdir(tmp_path)
    config = load_config(str(path), unknown_setting)
    assert config.rollout.slots == 16 and config.environment.options.search.threads == 2
    assert config.base.workdir == "runs/'x'\\" and config.seed == 2
    assert dict(config.warm_start.phases[0]) == PHASES[0]


def test_an_argument_stays_with_its_file():
    path, argument = split_argument("configs/qwen2_5.py:size=7b,algo=grpo")
    assert (str(path), argument) == ("configs/qwen2_5.py", ":size=7b,algo=grpo")
    text = derived_file("x", "configs/qwen2_5.py:size=3b", (), {})
    assert ":size=3b'" in text or ':size=3b"' in text
    config = derived_config("configs/qwen2_5.py:size=3b,algo=grpo", (), {})
    assert config.samples == 5 and config.model.preset == "qwen2.5-3b"


@pytest.mark.parametrize(
    ("overrides", "values"), [([("stps", "1")], {}), ((), {"stps": 1}), ((), {"rollout.slot": 1})]
)
def test_unknown_keys_are_refused(overrides, values):
    with pytest.raises(ValueError, match="Did you mean"):
        derived_config("configs/demo.py", overrides, values)

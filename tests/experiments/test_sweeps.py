"""Lists of runs, and the plans that are made of them."""

import re

import pytest

from sr1_jax.config_files import load_config
from sr1_jax.experiments.plan import index_of
from sr1_jax.experiments.sweeps import Entry, checked_configs, read_list, sweep_plan
from sr1_jax.training.settings import unknown_setting


def write(path, text):
    path.write_text(text)
    return path


def test_a_list(tmp_path):
    path = write(
        tmp_path / "list.txt",
        "# reference first\n"
        "ppo  configs/demo.py\n\n"
        "top-3 configs/demo.py rollout.passages=3 --config.seed=4  # two changes\n"
        "own  configs/qwen2_5.py:size=3b  own_base\n",
    )
    assert read_list(path) == [
        Entry("ppo", "configs/demo.py", (), False),
        Entry("top-3", "configs/demo.py", (("rollout.passages", "3"), ("seed", "4")), False),
        Entry("own", "configs/qwen2_5.py:size=3b", (), True),
    ]


def test_settings_beside_the_list_are_found(tmp_path):
    write(tmp_path / "mine.py", "def get_config(): ...\n")
    (entry,) = read_list(write(tmp_path / "list.txt", "a mine.py"))
    assert entry.config == str(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no runs"),
        ("# nothing", "no runs"),
        ("a configs/demo.py\na configs/demo.py", r":2: a run 'a' is there already"),
        ("a", ":1: a has no file of settings"),
        ("base configs/demo.py", ":1: 'base' cannot be the name of a run"),
        ("../a configs/demo.py", ":1: '../a' cannot be the name of a run"),
        ("a configs/demo.py steps", ":1: 'steps' is no change of a setting; write key=value"),
        ("a 'configs", ":1: No closing quotation"),
    ],
)
def test_a_bad_line_is_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_list(write(tmp_path / "list.txt", text))


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_list(tmp_path / "no.txt")


def test_settings_that_cannot_work_name_the_run():
    entries = [Entry("good", "configs/demo.py", (), False)]
    for change, message in ((("steps", "x"), "steps"), (("samples", "0"), "samples")):
        bad = Entry("bad", "configs/demo.py", (change,), False)
        with pytest.raises(ValueError, match=f"^bad: .*{message}"):
            checked_configs([*entries, bad], ())


def test_runs_of_a_seed_share_a_base(tmp_path):
    entries = [
        Entry("ppo", "configs/demo.py", (), False),
        Entry("top_3", "configs/demo.py", (("rollout.passages", "3"),), False),
        Entry("own", "configs/demo.py", (), True),
    ]
    overrides = (("steps", "5"),)
    configs = checked_configs(entries, overrides)
    asked = {seed: [f"dev{seed}.jsonl"] for seed in (0, 3)}
    plan = sweep_plan(entries, configs, overrides, tmp_path, seeds=(0, 3), asked=asked, limit=9)
    assert plan.reference == "ppo" and list(plan.rows) == ["ppo", "top_3", "own"]
    assert [stage.name for stage in plan.stages if "seed_3" in stage.name] == [
        "seed_3_base_train", "seed_3_ppo_train", "seed_3_ppo_evaluate", "seed_3_top_3_train",
        "seed_3_top_3_evaluate", "seed_3_own_train", "seed_3_own_evaluate",
    ]  # fmt: skip
    made = {}
    for stage in plan.stages:
        path = stage.config_path(tmp_path)
        path.parent.mkdir(exist_ok=True)
        path.write_text(stage.config)
        made[stage.name] = load_config(str(path), unknown_setting)
    base = str(tmp_path / "seed_3" / "base")
    assert made["seed_3_base_train"].steps == 0 and made["seed_3_base_train"].warm_start.phases
    for name in ("ppo", "top_3"):
        config = made[f"seed_3_{name}_train"]
        assert config.base.workdir == base and config.warm_start.phases == ()
        assert (config.seed, config.steps) == (3, 5)
    assert made["seed_3_top_3_train"].rollout.passages == 3
    assert (
        made["seed_3_own_train"].base.workdir == "" and made["seed_3_own_train"].warm_start.phases
    )
    evaluate = next(s for s in plan.stages if s.name == "seed_3_top_3_evaluate")
    assert evaluate.module == "evaluate"
    assert evaluate.flags == (
        f"--workdir={tmp_path / 'seed_3' / 'top_3'}",
        f"--results={tmp_path / 'seed_3' / 'top_3' / 'results_of_experiment.json'}",
        "--method=search", "--questions=dev3.jsonl", "--limit=9",
    )  # fmt: skip
    assert re.search("seed 3", evaluate.config)


def test_a_table_and_a_sweep_in_one_folder_share_their_runs(tmp_path):
    from sr1_jax.experiments.baselines import TableOptions, table_plan

    entries = [Entry("ppo", "configs/demo.py", (), False)]
    configs = checked_configs(entries, ())
    asked = {1: ["dev.jsonl"]}
    sweep = sweep_plan(entries, configs, (), tmp_path, seeds=(1,), asked=asked)
    options = TableOptions("configs/demo.py", rows=("ppo", "direct"), seeds=(1,))
    table = table_plan(configs["ppo"], options, tmp_path, trained={1: ["t"]}, asked=asked)
    by_name = {stage.name: stage for stage in table.stages}
    assert len(sweep.stages) == 3
    for stage in sweep.stages:
        assert by_name[stage.name] == stage


PRETRAINED = (
    ("base.path", "model"), ("data.world_people", "0"), ("data.questions", "q.jsonl"),
    ("data.corpus", "c.jsonl"), ("warm_start.phases", "()"),
)  # fmt: skip


def test_a_supervised_start_of_a_pretrained_policy_is_not_dropped(tmp_path):
    """The runs of a sweep start from base.path as it is, so they may not ask for another."""
    (tmp_path / "t.jsonl").write_text('{"ids": [1, 2], "mask": [0, 1]}\n')
    phase = {"name": "a", "examples": f"{tmp_path}/t.jsonl", "steps": 2, "learning_rate": 1e-3}
    tuned = (*PRETRAINED[:-1], ("warm_start.phases", f"({phase},)"))
    with pytest.raises(ValueError, match=r"^ppo: warm_start\.phases would tune base\.path"):
        checked_configs([Entry("ppo", "configs/demo.py", tuned, False)], ())
    checked_configs([Entry("ppo", "configs/demo.py", tuned, True)], ())


def test_runs_of_a_pretrained_policy_share_the_index_of_the_base(tmp_path):
    entries = [
        Entry("ppo", "configs/demo.py", PRETRAINED, False),
        Entry("top_3", "configs/demo.py", (*PRETRAINED, ("rollout.passages", "3")), False),
        Entry("k1", "configs/demo.py", (*PRETRAINED, ("retrieval.k1", "2.0")), False),
    ]
    configs = checked_configs(entries, ())
    indexes = {name: index_of(config) for name, config in configs.items()}
    plan = sweep_plan(
        entries, configs, (), tmp_path, seeds=(0,), asked={0: ["d.jsonl"]}, indexes=indexes
    )
    index = tmp_path / "seed_0" / "base" / "data" / indexes["ppo"]
    named = {stage.name: f"{str(index)!r}" in stage.config for stage in plan.stages}
    assert named == {
        "seed_0_base_train": False,
        "seed_0_ppo_train": True, "seed_0_ppo_evaluate": True,
        "seed_0_top_3_train": True, "seed_0_top_3_evaluate": True,
        "seed_0_k1_train": False, "seed_0_k1_evaluate": False,
    }  # fmt: skip

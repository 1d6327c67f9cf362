"""The rows of the table as stages: all from one base policy, on the same questions."""

import json

import pytest

from sr1_jax import table
from sr1_jax.config_files import load_config
from sr1_jax.evaluation.methods import METHODS
from sr1_jax.experiments.baselines import BASELINES, TableOptions, check_rows, table_plan
from sr1_jax.training.checks import check_config
from sr1_jax.training.settings import unknown_setting

ROWS = tuple(row for row in BASELINES if BASELINES[row].method in ("direct", "rag", "search"))


@pytest.fixture
def plan(tmp_path):
    options = TableOptions("configs/demo.py", overrides=(("steps", "5"),), rows=ROWS, seeds=(0, 2))
    config = load_config("configs/demo.py", unknown_setting)
    trained = {seed: [f"train{seed}.jsonl"] for seed in (0, 2)}
    asked = {seed: ["a.jsonl", "b.jsonl"] for seed in (0, 2)}
    return table_plan(config, options, tmp_path, trained=trained, asked=asked)


def settings_of(plan, name):
    stage = next(stage for stage in plan.stages if stage.name == name)
    path = stage.config_path(plan.folder)
    path.parent.mkdir(exist_ok=True)
    path.write_text(stage.config)
    return load_config(str(path), unknown_setting), stage


def test_every_row_has_a_policy_and_is_asked(plan):
    assert list(plan.rows) == list(ROWS) and plan.reference == "ppo"
    names = [stage.name for stage in plan.stages]
    assert len(set(names)) == len(names)
    for row in ROWS:
        trains = bool(BASELINES[row].training)
        assert plan.rows[row].of_base != trains
        assert (f"seed_2_{row}_train" in names) == trains
    asking = [stage for stage in plan.stages if stage.module == "evaluate"]
    for stage in asking:
        if "rejection_samples" not in stage.name:
            assert "--questions=a.jsonl,b.jsonl" in stage.flags


def test_prompted_rows_are_the_base_policy_in_one_call(plan):
    _, stage = settings_of(plan, "seed_0_prompted_evaluate")
    assert "--base" in stage.flags and "--method=direct,rag,search" in stage.flags


def test_every_training_stage_has_settings_that_can_work(plan):
    for stage in plan.stages:
        config, _ = settings_of(plan, stage.name)
        if stage.name.endswith("rejection_train"):
            # Its examples are sampled by the stage before it.
            path = plan.workdir(config.seed, "base") / "rejection.examples.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"ids": [1, 2], "mask": [0, 1]}\n')
        check_config(config)
        if "base_" not in stage.name and "prompted" not in stage.name:
            assert config.base.workdir in ("", str(plan.workdir(config.seed, "base")))


def test_rejection_sampling_learns_from_what_was_sampled_before(plan):
    names = [stage.name for stage in plan.stages]
    order = [names.index(f"seed_0_rejection_{part}") for part in ("samples", "train", "evaluate")]
    assert order == sorted(order)
    _, samples = settings_of(plan, "seed_0_rejection_samples")
    config, _ = settings_of(plan, "seed_0_rejection_train")
    (phase,) = config.warm_start.phases
    assert f"--examples={phase['examples']}" in samples.flags
    assert "--samples=5" in samples.flags and "--questions=train0.jsonl" in samples.flags
    assert (config.steps, config.warm_start.optimizer) == (0, "adam")


def test_reinforcement_learning_keeps_the_settings_given(plan):
    ppo, _ = settings_of(plan, "seed_2_ppo_train")
    grpo, _ = settings_of(plan, "seed_2_grpo_train")
    assert (ppo.steps, ppo.seed, ppo.learner.algorithm) == (5, 2, "ppo")
    assert (grpo.samples, grpo.learner.algorithm, grpo.learner.kl_kind) == (5, "grpo", "k3")


def test_every_row_answers_by_a_method_that_there_is():
    assert {row.method for row in BASELINES.values()} <= set(METHODS)


def test_unknown_rows_are_refused():
    for rows, message in (
        (["ppoo"], "--rows has 'ppoo'; the rows are"),
        (["rag", "rag"], "twice"),
        ([], "--rows names no row"),
    ):
        with pytest.raises(ValueError, match=message):
            check_rows(rows)


@pytest.fixture
def files(tmp_path):
    """Training questions and others, and a corpus."""
    for name, start in (("train", 0), ("dev", 100), ("mixed", 1)):
        rows = [
            {"id": f"nq:{name}:{i}" if name != "mixed" else f"nq:train:{i}", "question": "Who?",
             "golden_answers": ["x"]}
            for i in range(start, start + 3)
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.jsonl").write_text('{"id": "0", "contents": "\\"A\\"\\nx"}\n')
    return tmp_path


def plan_of(files, *, asked="dev", **changes):
    config = load_config("configs/smollm2_qa.py", unknown_setting)
    config.data.questions = str(files / "train.jsonl")
    config.data.corpus = str(files / "corpus.jsonl")
    for key, value in changes.items():
        config.data[key] = value
    options = TableOptions(
        "configs/smollm2_qa.py", rows=("ppo", "rejection"), questions=(f"{files}/{asked}.jsonl",)
    )
    return table.make_plan(config, options, files / "table")


def test_rejection_sampling_never_learns_from_what_is_asked(files):
    plan = plan_of(files)
    samples = next(stage for stage in plan.stages if stage.name.endswith("rejection_samples"))
    assert f"--questions={files}/train.jsonl" in samples.flags
    with pytest.raises(ValueError, match=r"Question nq:train:1 is asked, and rejection sampling"):
        plan_of(files, asked="mixed")
    with pytest.raises(ValueError, match=r"data\.limit chooses among training questions"):
        plan_of(files, limit=(("nq", 2),))


def test_questions_that_are_not_there_are_found_before_anything_is_trained(files):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        plan_of(files, asked="none")


def test_what_an_experiment_sets_itself_is_refused(files):
    config = load_config("configs/demo.py", unknown_setting)
    for key in ("seed", "method"):
        options = TableOptions("configs/demo.py", overrides=((key, "7"),))
        with pytest.raises(ValueError, match=f"an experiment sets {key} itself"):
            table.make_plan(config, options, files)

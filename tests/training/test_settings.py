"""Every config file works, every setting is read, every bad one is refused."""

import ast
import importlib
import inspect
from pathlib import Path

import ml_collections
import pytest

import sr1_jax
from sr1_jax.protocol.prompts import load_template
from sr1_jax.training.settings import (
    METHODS,
    check_config,
    default_config,
    rollout_config,
    templates,
)

PACKAGE = Path(inspect.getfile(sr1_jax)).parent
CONFIGS = sorted(p.stem for p in (PACKAGE.parent / "configs").glob("*.py") if p.stem != "__init__")
# Sections that are read as a whole.
WHOLE = ("retrieval", "templates")


def leaves(config, path=()):
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def set_key(config, path, value):
    *sections, key = path.split(".")
    for section in sections:
        config = config[section]
    with config.ignore_type():
        config[key] = value


def good_config():
    config = default_config()
    config.data.world_people = 640
    return config


def test_there_are_configs():
    assert "demo" in CONFIGS and "smollm2_qa" in CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_config_file(name, monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE.parent)  # as if started from there
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert config.is_locked
    assert f"--config=configs/{name}.py" in module.__doc__
    if not config.data.world_people:  # files are named on the command line
        config.data.questions = config.data.corpus = "file.jsonl"
        config.base.path = config.base.path or "folder"
    check_config(config)
    assert set(leaves(config)) == set(leaves(default_config()))
    for method in METHODS:
        rollout_config(config, method)
    # A config is built anew on each call.
    config.seed = 7
    assert module.get_config().seed != 7


def test_defaults_are_good_once_there_is_data():
    check_config(good_config())


@pytest.mark.parametrize("section", ["", "base", "learner", "rollout", "warm_start", "mesh"])
def test_unknown_keys_are_refused(section):
    config = default_config()
    section = config[section] if section else config
    with pytest.raises(AttributeError, match="nonsense"):
        section.nonsense = 1
    with pytest.raises(KeyError, match="nonsense"):
        section["nonsense"] = 1


def test_values_of_another_type_are_refused():
    config = default_config()
    with pytest.raises(TypeError):
        config.steps = "many"
    with pytest.raises(TypeError):
        config.learner.algorithm = 1


def attributes_read() -> set[str]:
    """Names read as attributes anywhere in the package but where settings are made and checked."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "settings.py":
            tree.body = [
                node
                for node in tree.body
                if getattr(node, "name", "") not in ("default_config", "check_config")
            ]
        names |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        }
    return names


def test_every_setting_is_read_somewhere():
    read = attributes_read()
    dead = [
        ".".join(path)
        for path in leaves(default_config())
        if (path[0] if path[0] in WHOLE else path[-1]) not in read
    ]
    assert dead == []


def test_the_search_for_dead_settings_can_fail():
    assert "a_setting_that_nobody_reads" not in attributes_read()
    assert "config.learner.lam" in {".".join(("config", *p)) for p in leaves(default_config())}


BAD = [
    # of the run
    ("method", "google", "method must be one of search, direct, rag, not 'google'"),
    ("questions", 0, "questions must be at least 1, not 0"),
    ("samples", -1, "samples must be at least 1, not -1"),
    ("steps", -5, "steps must not be negative: -5"),
    ("checkpoint.keep", 0, "checkpoint.keep must be at least 1, not 0"),
    ("checkpoint.every", -1, "checkpoint.every must not be negative: -1"),
    ("evaluation.questions", -5, "evaluation.questions must not be negative: -5"),
    ("rollout.temperature", 0.0, "rollout.temperature above 0"),
    ("rollout.top_p", 0.9, "training needs .* rollout.top_p=1 .*0.9"),
    ("rollout.top_k", 20, "training needs .* rollout.top_k=0.*20"),
    ("rollout.max_context_tokens", 5000, "5000 exceeds the last of learner.length_buckets"),
    ("data.corpus", "c.jsonl", "data.world_people and data files exclude each other"),
    ("rollout.template", "direct", r"the prompts of a run are templates\.search"),
    (
        "base.remat",
        "some",
        "base.remat must be one of none, dots, narrow, attention, full, not 'some'",
    ),
    # of rollouts
    ("rollout.slots", 0, "rollout.slots must be at least 1, not 0"),
    ("rollout.passages", 0, "rollout.passages must be at least 1"),
    ("rollout.max_segment_tokens", 0, "rollout.max_segment_tokens must be at least 1"),
    ("rollout.max_observation_tokens", 0, "rollout.max_observation_tokens must be at least 1"),
    ("rollout.max_context_tokens", 0, "rollout.max_context_tokens must be at least 1"),
    ("rollout.decode_steps", 0, "rollout.decode_steps must be at least 1"),
    ("rollout.retriever_attempts", 0, "rollout.retriever_attempts must be at least 1"),
    ("rollout.max_searches", -1, "rollout.max_searches must not be negative, not -1"),
    ("rollout.temperature", -0.5, "rollout.temperature must not be negative, not -0.5"),
    ("rollout.top_k", -1, "rollout.top_k must not be negative"),
    ("rollout.retriever_backoff_seconds", -1.0, "backoff_seconds must not be negative"),
    ("rollout.top_p", 0.0, r"rollout.top_p must lie in \(0, 1\], not 0"),
    ("rollout.top_p", 1.5, r"rollout.top_p must lie in \(0, 1\], not 1.5"),
    ("rollout.extend_buckets", (), "rollout.extend_buckets must be increasing lengths"),
    ("rollout.extend_buckets", (64, 32), r"increasing lengths, not \(64, 32\)"),
    ("rollout.extend_buckets", (0, 32), r"increasing lengths, not \(0, 32\)"),
    ("rollout.retriever_failure", "shrug", "retriever_failure must be .*'shrug'"),
    ("rollout.reward_metric", "bleu", "unknown reward metric 'bleu'"),
    ("rollout.format_weight", 1.5, "format_weight is 1.5"),
    # of the learner
    (
        "learner.algorithm",
        "dpo",
        "learner.algorithm must be one of ppo, grpo, dr_grpo, rloo, reinforce_pp, not 'dpo'",
    ),
    ("learner.kl_in", "both", "learner.kl_in must be one of reward, loss, none"),
    ("learner.kl_kind", "k4", "learner.kl_kind must be one of k1, abs, k2, k3, not 'k4'"),
    ("learner.old_logp", "stale", "learner.old_logp must be one of rollout, trainer"),
    ("learner.truncated", "drop", "learner.truncated must be one of mask, penalise"),
    ("learner.optimizer_dtype", "int8", "optimizer_dtype must be one of float32, bfloat16"),
    ("learner.offload", ("critic",), "learner.offload may name reference and optimizer, not cri"),
    ("learner.epochs", 0, "learner.epochs must be at least 1, not 0"),
    ("learner.minibatches", 0, "learner.minibatches must be at least 1"),
    ("learner.micro_batch", 0, "learner.micro_batch must be at least 1"),
    ("learner.chunk_tokens", 0, "learner.chunk_tokens must be at least 1"),
    ("learner.minibatches", 3, "512 trajectories a step do not divide into learner.minibatches=3"),
    ("learner.micro_batch", 96, "256 trajectories does not divide .* learner.micro_batch=96"),
    ("learner.mask_observations", False, "needs learner.old_logp='trainer'"),
    ("templates.rag", "serach", "No prompt template 'serach'"),
    ("model.preset", "qwen9-1b", "model.preset must be one of qwen2.5-0.5b, .*'qwen9-1b'"),
    ("dynamic_sampling_rounds", -1, "dynamic_sampling_rounds must not be negative, not -1"),
    (
        "dynamic_sampling_rounds",
        1,
        "groups without an advantage, .* grpo, dr_grpo, rloo have, .*'ppo'",
    ),
    ("learner.clip", -0.1, "learner.clip must not be negative, not -0.1"),
    ("learner.clip_high", -0.1, "learner.clip_high must not be negative"),
    ("learner.kl_coefficient", -1.0, "learner.kl_coefficient must not be negative"),
    ("learner.displacement_coefficient", -1.0, "displacement_coefficient must not be negative"),
    ("learner.overlong_buffer", -1, "learner.overlong_buffer must not be negative"),
    ("learner.overlong_buffer", 4096, "overlong_buffer=4096 must be shorter than rollout.max_c"),
    ("learner.overlong_penalty", -1.0, "learner.overlong_penalty must not be negative"),
    ("learner.ratio", "batch", "learner.ratio must be one of token, sequence, not 'batch'"),
    ("learner.ratio", "sequence", "one advantage a trajectory, .* ppo has one a token"),
    ("learner.loss_aggregation", "mean", "loss_aggregation must be one of token, sequence, const"),
    ("learner.loss_aggregation", "constant", "set both or neither, not None and 'constant'"),
    ("learner.loss_constant", 100, "set both or neither, not 100 and 'token'"),
    ("learner.dual_clip", 1.0, "learner.dual_clip must be above 1 or None, not 1.0"),
    ("learner.importance_cap", 2.0, "importance_cap needs learner.old_logp='trainer'"),
    ("learner.importance_cap", 0.0, "learner.importance_cap must be above 0 or None, not 0.0"),
    ("learner.kl_target", 0.0, "learner.kl_target must be above 0 or None, not 0.0"),
    ("learner.length_buckets", (), "learner.length_buckets must be increasing lengths"),
    ("learner.length_buckets", (8000, 4096), r"must be increasing lengths, not \(8000, 4096\)"),
    ("learner.row_lengths", (8000, 4096), r"learner.row_lengths must be increasing lengths, not"),
    ("learner.row_lengths", (0, 4096), r"learner.row_lengths must be increasing lengths, not"),
    ("learner.row_lengths", (1024, 4000), r"=\(1024, 4000\) end before .*_buckets, 4096"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=lambda x: str(x)[:40])
def test_bad_setting(key, value, message):
    config = good_config()
    set_key(config, key, value)
    with pytest.raises(ValueError, match=message) as error:
        check_config(config)
    assert "\n" not in str(error.value)


def test_packed_rows_need_not_divide_a_mini_batch_but_be_filled():
    config = good_config()
    config.learner.packing, config.learner.micro_batch = True, 96
    check_config(config)
    config.learner.micro_batch = 288
    with pytest.raises(ValueError, match="micro_batch=288 packed rows are more than the 256 traj"):
        check_config(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner.algorithm": "grpo"}, "samples must be at least 2, not 1"),
        (
            {"learner.algorithm": "rloo"},
            "algorithm='rloo' compares the samples .* must be at least 2",
        ),
        (
            {"learner.displacement_coefficient": 0.2, "learner.minibatches": 1},
            "displacement_coefficient compares .* raise learner.epochs or learner.minibatches",
        ),
        (
            {
                "learner.importance_cap": 2.0,
                "learner.old_logp": "trainer",
                "learner.mask_observations": False,
            },
            "importance_cap excludes learner.mask_observations=False",
        ),
        (
            {"learner.kl_target": 0.1, "learner.kl_in": "none"},
            "kl_target steers a coefficient: .*, not 'none' and 0.001",
        ),
        (
            {"learner.kl_target": 0.1, "learner.kl_coefficient": 0.0},
            "learner.kl_coefficient above 0, not 'reward' and 0.0",
        ),
        (
            {"learner.kl_target": 0.1, "learner.kl_horizon": 100},
            "learner.kl_horizon=100 must exceed a fifth of the 512 trajectories",
        ),
        ({"base.path": "a", "base.workdir": "b"}, "base.path and base.workdir exclude each other"),
        ({"data.world_people": 0}, r"data.questions is not set.*--config.data.questions"),
        ({"data.world_people": 0, "data.questions": "q"}, "data.corpus is not set"),
        (
            {"data.world_people": 0, "data.questions": "q", "data.corpus": "c"},
            "base.path is not set",
        ),
        (
            {"base.path": "a", "warm_start.phases": ({"name": "read"},)},
            "base.path and warm_start.phases exclude each other",
        ),
        (
            {"model.preset": "qwen2.5-7b"},
            "base.path is not set: name the folder that holds qwen2.5-7b",
        ),
    ],
)
def test_bad_combination(changes, message):
    config = good_config()
    for key, value in changes.items():
        set_key(config, key, value)
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_plan_needs_no_files():
    config = default_config()
    config.model.preset = "qwen2.5-7b"
    check_config(config, inputs=False)
    config.steps = -1
    with pytest.raises(ValueError, match="steps must not be negative"):
        check_config(config, inputs=False)


@pytest.mark.parametrize("key", ["clip_high", "dual_clip", "importance_cap", "kl_target"])
def test_settings_that_are_off_by_default_take_numbers_only(key):
    config = default_config()
    assert config.learner[key] is None
    config.learner[key] = 2
    config.learner[key] = 1.5
    assert config.learner[key] == 1.5
    with pytest.raises(TypeError):
        config.learner[key] = "wide"


@pytest.mark.parametrize(("key", "value"), [("rollout.top_p", 0.9), ("rollout.temperature", 0.0)])
def test_sampling_is_free_where_nothing_is_trained(key, value):
    config = good_config()
    config.steps = 0
    set_key(config, key, value)
    check_config(config)


def test_a_prompt_of_ones_own(tmp_path):
    """It replaces that of `search` and no other, in rollouts and in traces."""
    config = good_config()
    file = tmp_path / "search"  # the name of a shipped one, too
    file.write_text("Find out: {question}")
    (tmp_path / "search.txt").write_text("not this: {question}")
    config.protocol.template_path = str(file)
    check_config(config)
    template = rollout_config(config, "search").template
    assert load_template(template).parts == ("Find out: ", "question", "")
    assert rollout_config(config, "rag").template == "rag"
    assert templates(config) == {"search": template, "direct": "direct", "rag": "rag"}
    file.write_text("Find out.")
    with pytest.raises(ValueError, match=r"search has no \{question\}"):
        check_config(config)
    file.unlink()
    with pytest.raises(ValueError, match=r"protocol\.template_path: .*search is not a file"):
        check_config(config)


def test_rollout_config_of_a_method():
    config = default_config()
    config.protocol.rag_template = "compact_rag"
    search = rollout_config(config, "search")
    assert (search.template, search.max_searches, search.temperature) == ("search", 4, 1.0)
    rag = rollout_config(config, "rag", greedy=True)
    assert (rag.template, rag.max_searches, rag.temperature) == ("compact_rag", 0, 0.0)
    assert rollout_config(config, "direct").max_searches == 0
    # The run's own settings are left alone, and neither can be misspelt.
    assert (config.rollout.max_searches, config.rollout.temperature) == (4, 1.0)
    assert rag.is_locked and config.rollout.is_locked
    with pytest.raises(ValueError, match="method must be one of"):
        rollout_config(config, "google")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, r"warm_start\.phases\[0\] has no 'steps'"),
        ({"evalute_at": (3,)}, r"warm_start\.phases\[0\]: unknown key 'evalute_at'; the keys are"),
    ],
)
def test_a_phase_with_a_wrong_key(change, message):
    phase = dict(name="read", steps=1, traces=1, learning_rate=1e-3, mix={})
    config = good_config()
    config.warm_start.phases = (phase,)
    check_config(config)
    changed = {key: value for key, value in (phase | change).items() if value is not None}
    config.warm_start.phases = (changed,)
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_reference_under_adapters_cannot_wait_on_the_hosts():
    config = good_config()
    config.lora.rank, config.learner.offload = 2, ("reference",)
    with pytest.raises(ValueError, match=r"learner\.offload has 'reference'"):
        check_config(config)

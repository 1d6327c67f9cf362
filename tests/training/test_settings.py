"""Every config file works, every setting is read, every bad one is refused."""

import ast
import importlib
import inspect
from pathlib import Path

import ml_collections
import pytest

import sr1_jax
from sr1_jax.evaluation.methods import METHODS, rollout_config, templates
from sr1_jax.protocol.prompts import load_template
from sr1_jax.training.checks import check_config
from sr1_jax.training.settings import MOVED, RUN, default_config, fixed_settings, unknown_setting

PACKAGE = Path(inspect.getfile(sr1_jax)).parent
CONFIGS = sorted(p.stem for p in (PACKAGE.parent / "configs").glob("*.py") if p.stem != "__init__")
# Sections that are read as a whole.
WHOLE = ("retrieval", "protocol")


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


PHASE = dict(name="read", steps=1, traces=1, learning_rate=1e-3, mix={})


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
        if path.name == "checks.py":
            continue
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


# Single ranges are walked through in test_setting_ranges.py.
BAD = [
    # of the run
    ("method", "google", "method must be one of search, direct, cot, .*, not 'google'"),
    ("questions", 0, "questions must be at least 1, not 0"),
    ("steps", -5, "steps must not be negative, not -5"),
    ("rollout.temperature", 0.0, "rollout.temperature above 0"),
    ("rollout.top_p", 0.9, "training needs .* rollout.top_p=1 .*0.9"),
    ("rollout.top_k", 20, "training needs .* rollout.top_k=0.*20"),
    ("rollout.max_context_tokens", 5000, "5000 exceeds the last of learner.length_buckets"),
    ("data.corpus", "c.jsonl", "data.world_people and data files exclude each other"),
    (
        "base.remat",
        "some",
        "base.remat must be one of none, dots, narrow, attention, full, .*'some'",
    ),
    ("base.param_dtype", "bfloat16", "base.param_dtype='bfloat16' loses the small steps"),
    ("model.heads", 3, "model.heads=3 must be a multiple of model.kv_heads=2 and divide"),
    ("protocol.rag_template", "serach", "protocol.rag_template: No prompt template 'serach'"),
    ("model.preset", "qwen9-1b", "model.preset must be one of qwen2.5-0.5b, .*'qwen9-1b'"),
    ("retrieval.kind", "bm52", r"retrieval.kind='bm52': .* Did you mean bm25\?"),
    ("environment.tools", ("serach",), "environment.tools has 'serach'; a tool is search, or"),
    ("environment.tools", ("nowhere:tool",), "environment.tools='nowhere:tool': there is no mod"),
    ("warm_start.phases", (3,), r"warm_start.phases\[0\] must be a dict .*, not 3"),
    (
        "dynamic_sampling_rounds",
        1,
        "groups without an advantage, .* grpo, dr_grpo, rloo have, .*'ppo'",
    ),
    # of the learner
    ("learner.minibatch_size", 3, "minibatch_size=3 does not divide the 512 trajectories of"),
    ("learner.micro_batch", 96, "256 trajectories does not divide .* learner.micro_batch=96"),
    ("learner.mask_observations", False, "needs learner.old_logp='trainer'"),
    ("learner.ratio", "sequence", "one advantage a trajectory, .* ppo has one a token"),
    ("learner.loss_aggregation", "constant", "set both or neither, not None and 'constant'"),
    ("learner.loss_constant", 100, "set both or neither, not 100 and 'token'"),
    ("learner.importance_cap", 2.0, "importance_cap needs learner.old_logp='trainer'"),
    ("learner.row_lengths", (1024, 4000), r"=\(1024, 4000\) end before .*_buckets, 4096"),
    ("learner.warmup_share", 1.5, r"learner.warmup_share must lie in \[0, 1\], not 1.5"),
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
            {"reward.overlong_buffer": 4096, "reward.terms": (("em", 1.0), ("overlong", -1.0))},
            "overlong_buffer=4096 must be shorter than rollout.max_context_tokens",
        ),
        (
            {"method": "direct", "reward.terms": (("em", 1.0), ("search_cost", -0.1))},
            "The term 'search_cost' of reward.terms looks at searches, .* method='direct'",
        ),
        (
            {
                "rollout.max_searches": 0,
                "reward.terms": (("em_format", 1.0),),
                "reward.format_weight": 0.2,
                "reward.retrieval_weight": 0.1,
            },
            r"reward\.retrieval_weight=0\.1 looks at searches, .* rollout\.max_searches=0",
        ),
        (
            {
                "reward.terms": (("judge", 1.0),),
                "reward.judge.url": "http://localhost:8000/v1",
                "reward.judge.model": "m",
                "reward.judge.key_variable": "SR1_JAX_NO_SUCH_KEY",
            },
            r"reward\.judge\.key_variable: the environment variable SR1_JAX_NO_SUCH_KEY .* not set",
        ),
        (
            {"reward.judge.url": "http://me:secret@localhost/v1"},
            r"reward\.judge\.url must hold neither a name nor a query: [^']*$",
        ),
        (
            {"learner.algorithm": "rloo"},
            "algorithm='rloo' compares the samples .* must be at least 2",
        ),
        (
            {"learner.displacement_coefficient": 0.2, "learner.minibatch_size": 512},
            "displacement_coefficient compares .* raise learner.epochs, lower",
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
            {
                "data.world_people": 0,
                "data.questions": "q",
                "data.corpus": "c",
                "base.workdir": "b",
                "warm_start.phases": (PHASE,),
            },
            "traces to imitate are those of the fictional world",
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
    found = templates(config)
    assert load_template(found["search"]).parts == ("Find out: ", "question", "")
    assert (found["direct"], found["rag"]) == ("direct", "rag")
    file.write_text("Find out.")
    with pytest.raises(ValueError, match=r"search has no \{question\}"):
        check_config(config)
    file.unlink()
    with pytest.raises(ValueError, match=r"protocol\.template_path: .*search is not a file"):
        check_config(config)


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_train(method):
    config = good_config()
    config.method = method
    if method in ("search_o1", "rejection"):
        with pytest.raises(ValueError, match=f"method='{method}' cannot be trained with: "):
            check_config(config)
        config.steps = 0  # a run that only evaluates
    check_config(config)


def test_rollout_config_of_a_method():
    config = default_config()
    search = rollout_config(config, "search")
    assert (search.max_searches, search.temperature) == (4, 1.0)
    rag = rollout_config(config, "rag", greedy=True)
    assert (rag.max_searches, rag.temperature) == (0, 0.0)
    assert rollout_config(config, "direct").max_searches == 0
    # The run's own settings are left alone, and neither can be misspelt.
    assert (config.rollout.max_searches, config.rollout.temperature) == (4, 1.0)
    assert rag.is_locked and config.rollout.is_locked
    with pytest.raises(ValueError, match="method must be one of"):
        rollout_config(config, "google")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, r"warm_start\.phases\[0\] needs steps or epochs"),
        ({"learning_rate": None}, r"warm_start\.phases\[0\] has no 'learning_rate'"),
        ({"evalute_at": (3,)}, r"warm_start\.phases\[0\]: unknown key 'evalute_at'; the keys are"),
        ({"steps": 0}, r"warm_start\.phases\[0\] needs steps or epochs"),
        ({"learning_rate": -1.0}, r"warm_start\.phases\[0\]\.learning_rate must be positive"),
        ({"mix": 0.5}, r"warm_start\.phases\[0\]\.mix must be a dict, not 0\.5"),
    ],
)
def test_a_phase_with_a_wrong_key(change, message):
    config = good_config()
    config.warm_start.phases = (PHASE,)
    check_config(config)
    changed = {key: value for key, value in (PHASE | change).items() if value is not None}
    config.warm_start.phases = (changed,)
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_reference_under_adapters_cannot_wait_on_the_hosts():
    config = good_config()
    config.lora.rank, config.learner.offload = 2, ("reference",)
    with pytest.raises(ValueError, match=r"learner\.offload has 'reference'"):
        check_config(config)


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_a_deterministic_run_searches_vectors_one_query_at_a_time(tmp_path, kind):
    config = good_config()
    config.rollout.deterministic = True
    config.retrieval.kind, config.retrieval.dense.encoder = kind, str(tmp_path)
    with pytest.raises(ValueError, match=r"retrieval\.kind='\w+' with .*search\.batch=64.* to 1"):
        check_config(config)
    config.environment.options.search.batch = 1
    check_config(config)
    config.environment.options.search.failure = "empty"
    with pytest.raises(ValueError, match=r"excludes environment\.options\.search\.failure"):
        check_config(config)


# What a resumed run may change


def test_what_is_free_on_resume_is_a_flag_of_the_key():
    config = good_config()
    before = fixed_settings(config.to_dict())
    free = {key for key, setting in RUN.walk() if setting.free_on_resume}
    assert "learner.learning_rate" in free and "learner.gamma" not in free
    config.steps = 7
    config.learner.learning_rate = 0.5
    config.learner.clip_high = 0.3
    config.evaluation.every = config.checkpoint.keep = config.mesh.tensor = 3
    config.environment.options.search.failure = "empty"
    config.data.corpus = config.base.path = "elsewhere"  # what they hold is compared instead
    assert fixed_settings(config.to_dict()) == before
    config.learner.gamma = 0.5
    assert fixed_settings(config.to_dict()) != before


# Keys of earlier versions


@pytest.mark.parametrize("key", MOVED)
def test_an_old_key_gets_its_new_name(key):
    """The new name is a key that there is."""
    message = unknown_setting(key)
    assert f"There is no setting {key} any more: use {MOVED[key]}." == message
    new = MOVED[key].split()[0].rstrip(",")
    assert new in dict(RUN.walk())


def test_an_unknown_key_gets_the_nearest():
    assert unknown_setting("learner.learning_rat").startswith(
        "There is no setting learner.learning_rat. Did you mean learner.learning_rate?"
    )


def test_tools_instead_of_search_need_no_corpus(tmp_path, monkeypatch):
    (tmp_path / "own_calculator.py").write_text(
        "class Calculator:\n"
        "    tag, observation_tag = 'calculate', 'result'\n"
        "    def __init__(self, config): pass\n"
        "    def call(self, requests): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = default_config()
    config.base.path, config.data.questions = "folder", "questions.jsonl"
    config.environment.tools = ("own_calculator:Calculator",)
    check_config(config)
    config.environment.tools = ("search", "own_calculator:Calculator")
    with pytest.raises(ValueError, match=r"data\.corpus is not set"):
        check_config(config)
    config.method = "direct"
    check_config(config)

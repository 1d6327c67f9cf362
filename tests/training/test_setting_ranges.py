"""Every setting is given bad values: it refuses them, or it is written down why it does not."""

import math

import pytest

from sr1_jax.training.checks import check_config
from sr1_jax.training.settings import RUN, default_config

ZERO_IS_OFF = "0 turns it off"
ZERO_IS_A_RATE = "a weight, share or bound of 0 is the end of its range"
CHECKED_AGAINST_FILES = "a name of a file or folder, which is looked for when the run starts"

# (key, value) -> why the value is good. Other values of the list below are refused by key.
GOOD = {
    ("seed", 0): "a seed like any other",
    ("steps", 0): "a run that only evaluates",
    ("dynamic_sampling_rounds", 0): ZERO_IS_OFF,
    ("compilation_cache", "nonsense"): CHECKED_AGAINST_FILES,
    ("base.path", "nonsense"): CHECKED_AGAINST_FILES,
    ("base.workdir", "nonsense"): CHECKED_AGAINST_FILES,
    ("critic.path", "nonsense"): CHECKED_AGAINST_FILES,
    ("lora.path", "nonsense"): CHECKED_AGAINST_FILES,
    ("checkpoint.folder", "nonsense"): CHECKED_AGAINST_FILES,
    ("data.questions", "nonsense"): CHECKED_AGAINST_FILES,
    ("data.dev", "nonsense"): CHECKED_AGAINST_FILES,
    ("data.corpus", "nonsense"): CHECKED_AGAINST_FILES,
    ("data.index", "nonsense"): CHECKED_AGAINST_FILES,
    ("data.folder", "nonsense"): CHECKED_AGAINST_FILES,
    ("data.filter", ()): "all questions",
    ("data.limit", ()): "all questions",
    ("data.weights", ()): "sets are drawn as they occur",
    ("data.curriculum.target", 0.0): ZERO_IS_A_RATE,
    ("data.world_people", 0): ZERO_IS_OFF,
    ("warm_start.micro_batch", 0): "all of a batch",
    ("warm_start.checkpoint_every", 0): ZERO_IS_OFF,
    ("lora.rank", 0): ZERO_IS_OFF,
    ("lora.targets", ()): "without adapters no kernel has one",
    ("mesh.data", -1): "all devices that the other axes leave",
    ("mesh.fsdp", -1): "all devices that the other axes leave",
    ("mesh.tensor", -1): "all devices that the other axes leave",
    ("environment.tools", ()): "a policy without tools",
    ("environment.options.search.backoff_seconds", 0.0): "no pause",
    ("environment.options.search.max_calls", 0): "the tool is never called",
    ("retrieval.k1", 0.0): ZERO_IS_A_RATE,
    ("retrieval.b", 0.0): ZERO_IS_A_RATE,
    ("retrieval.dense.encoder", "nonsense"): CHECKED_AGAINST_FILES,
    ("retrieval.dense.vectors", "nonsense"): CHECKED_AGAINST_FILES,
    ("retrieval.dense.search.faiss", "nonsense"): "FAISS knows, of vectors of a width",
    ("retrieval.dense.search.faiss_parameters", "nonsense"): "FAISS knows, of an index",
    ("retrieval.dense.query_prefix", "nonsense"): "any text may stand before another",
    ("retrieval.dense.passage_prefix", "nonsense"): "any text may stand before another",
    ("retrieval.dense.search.block", 0): "as suits the devices",
    ("retrieval.hybrid.k", 0): "the first of each ranking counts most",
    ("retrieval.http.backoff_seconds", 0.0): "no pause",
    ("retrieval.http.token_file", "nonsense"): CHECKED_AGAINST_FILES,
    ("retrieval.web.key_variable", "nonsense"): "a name that a variable may have",
    ("retrieval.web.backoff_seconds", 0.0): "no pause",
    ("retrieval.web.ledger", "nonsense"): CHECKED_AGAINST_FILES,
    ("retrieval.web.cost_per_request", 0.0): "nothing is spent",
    ("retrieval.noise.start", 0.0): ZERO_IS_A_RATE,
    ("retrieval.noise.steps", 0): ZERO_IS_OFF,
    ("retrieval.noise.evaluation", 0.0): ZERO_IS_A_RATE,
    ("retrieval.noise.seed", 0): "a seed like any other",
    ("retrieval.cache.folder", "nonsense"): CHECKED_AGAINST_FILES,
    ("retrieval.delay_seconds", 0.0): ZERO_IS_OFF,
    ("retrieval.missing", 0.0): ZERO_IS_OFF,
    ("reward.format_weight", 0.0): ZERO_IS_A_RATE,
    ("reward.final_format_weight", 0.0): ZERO_IS_A_RATE,
    ("reward.retrieval_weight", 0.0): ZERO_IS_A_RATE,
    ("reward.refine_weight", 0.0): ZERO_IS_A_RATE,
    ("reward.free_searches", 0): ZERO_IS_OFF,
    ("reward.overlong_buffer", 0): ZERO_IS_OFF,
    ("reward.judge.backoff_seconds", 0.0): "no pause",
    ("warm_start.phases", ()): "no supervised start",
    ("evaluation.every", 0): ZERO_IS_OFF,
    ("evaluation.questions", 0): ZERO_IS_OFF,
    ("evaluation.final_questions", 0): ZERO_IS_OFF,
    ("checkpoint.every", 0): ZERO_IS_OFF,
    ("checkpoint.minutes", 0.0): ZERO_IS_OFF,
    ("guards.most_roll_backs", 0): "the first time it should go back, the run ends",
    ("log.groups", 0): ZERO_IS_OFF,
    ("log.peak_tflops", 0.0): "by the name of the device",
    ("watchdog.seconds", 0.0): ZERO_IS_OFF,
    ("rollout.max_searches", 0): "no search",
    ("rollout.top_k", 0): ZERO_IS_OFF,
    ("rollout.decode_sizes", 0): "as the device asks",
    ("learner.warmup_share", 0.0): ZERO_IS_OFF,
    ("learner.critic_warmup_share", 0.0): ZERO_IS_OFF,
    ("learner.decay_share", 0.0): ZERO_IS_OFF,
    ("learner.weight_decay", 0.0): ZERO_IS_OFF,
    ("learner.adam_b2", 0.0): ZERO_IS_A_RATE,
    ("learner.offload", ()): "nothing waits on the hosts",
    ("learner.row_lengths", ()): "derived from length_buckets",
    ("learner.clip", 0.0): ZERO_IS_A_RATE,
    ("learner.clip_high", 0.0): ZERO_IS_A_RATE,
    ("learner.value_clip", 0.0): ZERO_IS_A_RATE,
    ("learner.displacement_coefficient", 0.0): ZERO_IS_OFF,
    ("learner.gamma", 0.0): ZERO_IS_A_RATE,
    ("learner.lam", 0.0): ZERO_IS_A_RATE,
    ("learner.kl_coefficient", 0.0): ZERO_IS_OFF,
    ("learner.entropy_coefficient", 0.0): ZERO_IS_OFF,
}  # fmt: skip


def bad_values(setting):
    """Values of a setting's type that few settings take."""
    kind = setting.type or type(setting.default)
    return {
        int: [-1, 0],
        float: [-1.0, 0.0, math.nan, math.inf, -math.inf],
        str: ["nonsense"],
        tuple: [(), ("nonsense",), (0,), (-1,), (2, 1)],
        bool: [],  # there are two, and both are good
        object: ["nonsense", -1, math.nan],
    }[kind]


CASES = [(key, value) for key, setting in RUN.walk() for value in bad_values(setting)]


def config_with(key, value):
    config = default_config()
    if not key.startswith("data."):
        config.data.world_people = 64
    else:
        config.data.questions, config.data.corpus, config.base.path = "q", "c", "b"
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section[part]
    with section.ignore_type():
        section[name] = value
    return config


@pytest.mark.parametrize(("key", "value"), CASES, ids=lambda x: str(x))
def test_a_bad_value_is_refused_by_key(key, value):
    config = config_with(key, value)
    if (key, value) in GOOD:
        check_config(config)
        return
    with pytest.raises(ValueError) as error:
        check_config(config)
    section, _, name = key.rpartition(".")
    said = str(error.value)
    assert key in said or (
        section == "retrieval" and said.startswith("retrieval: ") and name in said
    )
    assert "\n" not in said


def test_the_list_of_good_values_has_no_dead_entry():
    assert set(GOOD) <= set(CASES)


def test_every_setting_was_walked_but_those_with_two_values():
    flags = {key for key, setting in RUN.walk() if bool in (setting.type, type(setting.default))}
    assert {key for key, _ in CASES} | flags == {key for key, _ in RUN.walk()}

"""A run made of shapes: the same programs as a real one, and memory added up by hand."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_runs import tiny_config

from sr1_jax.chips import CHIPS, chip_of
from sr1_jax.models.decoder import Decoder, DecoderConfig, ValueModel, parameter_count
from sr1_jax.planning import hlo
from sr1_jax.planning.buffers import largest_with_vocabulary, read_buffers
from sr1_jax.planning.compiler import compile_program
from sr1_jax.planning.costs import Costs, Overlap, costs_of
from sr1_jax.planning.run import also_held, chunk_bytes, device_bytes, make_run
from sr1_jax.planning.step import Assumptions, calls_of
from sr1_jax.planning.timing import needed_flops, time_of
from sr1_jax.rl.batch import Batch
from sr1_jax.rl.learner import Learner
from sr1_jax.rl.program_keys import (
    Accumulate,
    Apply,
    Kept,
    Merge,
    Prepare,
    Score,
    Totals,
    Zeros,
)
from sr1_jax.rollout.program_keys import Decode, Extend, Fork, Reshard
from sr1_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def run():
    return make_run(tiny_config(data=1, fsdp=2, tensor=2), jax.devices()[:4])


def shapes_of(arguments):
    """Shape, dtype and share of a device of each argument."""

    def one(x):
        where = getattr(x, "sharding", None)
        share = np.shape(x) if where is None else where.shard_shape(x.shape)
        dtype = jax.dtypes.canonicalize_dtype(getattr(x, "dtype", np.float32))
        return np.shape(x), dtype, share

    return jax.tree.leaves(jax.tree.map(one, arguments))


def test_the_plan_lists_what_a_step_calls(monkeypatch):
    """Every call of a real step is among the programs of a learner of shapes: the same traced
    function, shapes, shares and static arguments."""
    config = tiny_config().learner
    shape = DecoderConfig(
        vocab_size=96, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, ff_width=32
    )
    mesh = make_mesh(1, 2, 1, jax.devices()[:2])
    models = Decoder(shape, rngs=nnx.Rngs(0)), ValueModel(shape, rngs=nnx.Rngs(1))
    real = Learner(*models, config, mesh, trajectories=8, steps=1)
    shapes = [nnx.eval_shape(lambda model=model: model) for model in models]
    abstract = Learner(*shapes, config, mesh, trajectories=8, steps=1)
    listed = {program.key: program for program in abstract.programs()}
    for program in real.programs():
        twin = listed[program.key]
        assert shapes_of(program.arguments) == shapes_of(twin.arguments)
        assert program.settings == twin.settings
    chosen = Accumulate("policy", 64, 16)
    program = next(p for p in real.programs() if p.key == chosen)
    assert program.lower().as_text() == listed[chosen].lower().as_text()

    called = set()

    def spy(owner, attribute, key):
        jitted = getattr(owner, attribute)

        def call(*arguments, **settings):
            called.add(key)
            assert shapes_of(arguments) == shapes_of(listed[key].arguments), key
            assert settings == listed[key].settings
            return jitted(*arguments, **settings)

        monkeypatch.setattr(owner, attribute, call)

    spy(real, "_score", Score(64, 16))
    spy(real, "_prepare", Prepare())
    spy(real, "_totals", Totals())
    for update, model in ((real._update_policy, "policy"), (real._update_critic, "critic")):
        spy(update, "zeros", Zeros(model))
        spy(update, "accumulate", Accumulate(model, 64, 16))
        spy(update, "apply", Apply(model))
    rng = np.random.default_rng(0)
    trains_BT = np.zeros((8, 128), np.float32)
    trains_BT[:, 10:20] = 1
    rewards_BT = np.zeros_like(trains_BT)
    rewards_BT[:, 19] = 1
    batch = Batch(
        ids_BT=rng.integers(0, 96, (8, 128)).astype(np.int32),
        trains_BT=trains_BT,
        sampled_BT=trains_BT,
        logp_BT=-trains_BT,
        rewards_BT=rewards_BT,
        reward_B=np.ones(8, np.float32),
        group_B=np.arange(8, dtype=np.int32),
    )
    real.step(real.initial_state(), batch, seed=0, step=1)
    assert called == {
        Score(64, 16), Prepare(), Totals(), Zeros("policy"), Accumulate("policy", 64, 16),
        Apply("policy"), Zeros("critic"), Accumulate("critic", 64, 16), Apply("critic"),
    }  # fmt: skip


def test_what_stays_in_memory_adds_up(run):
    """fsdp 2, tensor 2, float32: matrices are a quarter each, scales are whole, moments twice."""
    shape = run.policy
    width, layers = shape.width, shape.layers
    heads = shape.heads * shape.head_dim * 2 + shape.kv_heads * shape.head_dim * 2
    matrices = layers * width * (heads + 3 * shape.ff_width) + shape.vocab_size * width
    scales = (2 * layers + 1) * width
    policy = 4 * (matrices // 4 + scales)
    found = {name: device_bytes(tree) for name, tree in run.resident.items()}
    assert found["policy"] == found["reference"] == policy
    assert found["policy optimizer"] == pytest.approx(2 * policy, abs=64)
    # The critic has no vocabulary head (it is tied here) but one column and its bias.
    assert found["critic"] == policy + 4 * (width // 2 + 1)
    # Rollouts split matrices over tensor alone.
    assert found["rollout weights"] == 4 * (matrices // 2 + scales)
    # 2 · layers · slots · positions · kv_heads · head_dim · 4 bytes over 4 devices.
    assert found["KV cache"] == 2 * layers * 8 * 128 * shape.kv_heads * shape.head_dim * 4 // 4


def test_a_device_also_holds_what_a_program_is_not_given(run):
    sizes = {name: device_bytes(tree) for name, tree in run.resident.items()}
    training = {"policy", "policy optimizer", "critic", "critic optimizer", "reference"}
    assert also_held(run, Decode(8)) == {name: sizes[name] for name in training}
    assert also_held(run, Accumulate("policy", 64, 16)).keys() == training - {"policy"}
    assert also_held(run, Apply("policy")).keys() == training - {"policy", "policy optimizer"}
    assert also_held(run, Score(64, 16)).keys() == {"policy optimizer", "critic optimizer"}
    assert also_held(run, Fork(8, 128)).keys() == training | {"rollout weights"}


def test_while_weights_move_a_device_also_holds_those_that_do_not(run):
    """A layer moves to where the others are, then embedding, norm and head: each of these is either
    an argument, in the output, or held besides."""
    sizes = {name: device_bytes(tree) for name, tree in run.resident.items() if name != "KV cache"}
    by_key = {program.key: program for program in run.programs}
    layer, ends = (also_held(run, Reshard(part)) for part in ("layer", "ends"))
    stack = device_bytes(by_key[Reshard("layer")].arguments[0])
    served = device_bytes(run.resident["rollout weights"].layers[0])
    changed = {
        "policy": sizes["policy"] - stack,
        "rollout weights": (run.policy.layers - 1) * served,
    }
    assert layer == sizes | changed
    of_ends = {"policy": stack, "rollout weights": run.policy.layers * served}
    assert ends == sizes | of_ends
    memory = compile_program(by_key[Reshard("ends")]).memory
    assert memory.arguments == pytest.approx(sizes["policy"] - stack, abs=64)
    outputs = sizes["rollout weights"] - of_ends["rollout weights"]
    assert memory.output == pytest.approx(outputs, abs=256)


class Calculator:
    tag, observation_tag = "calculate", "result"

    def call(self, requests):
        raise AssertionError("A plan calls no tool.")


def make_calculator(config):
    return Calculator()


def test_decoding_stops_at_the_tags_of_the_tools_configured(run):
    """States of the automaton: the beginnings of </search>, </answer> and </calculate>, from the
    empty to the whole one, and a final state for each and for the end of the text."""

    def states(run):
        decode = next(p for p in run.programs if isinstance(p.key, Decode))
        assert decode.settings["first_final"] == decode.arguments[5].shape[0] - finals
        return decode.arguments[5].shape[0]

    def beginnings(*stops):
        return {stop[:end] for stop in stops for end in range(len(stop) + 1)}

    finals = 3
    alone = states(run)
    assert alone == len(beginnings("</search>", "</answer>")) + finals
    config = tiny_config()
    config.environment.tools = ("search", f"{__name__}:make_calculator")
    finals = 4
    both = states(make_run(config, jax.devices()[:1]))
    assert both == len(beginnings("</search>", "</answer>", "</calculate>")) + finals


def test_decoding_stops_at_the_tags_of_the_method():
    """Where thoughts are searches, </think> and no other request."""
    config = tiny_config()
    config.method = "ircot"
    run = make_run(config, jax.devices()[:1])
    decode = next(p for p in run.programs if isinstance(p.key, Decode))
    stops = ("</think>", "</answer>")
    beginnings = {stop[:end] for stop in stops for end in range(len(stop) + 1)}
    assert decode.settings["first_final"] == len(beginnings)
    assert decode.arguments[5].shape[0] == len(beginnings) + 3


def test_what_training_refuses_has_no_plan():
    config = tiny_config()
    config.method = "search_o1"
    with pytest.raises(ValueError, match="method='search_o1' cannot be trained with"):
        make_run(config, jax.devices()[:1])
    config = tiny_config()
    config.rollout.max_context_tokens = 400
    with pytest.raises(ValueError, match=r"max_context_tokens=400 exceeds the last of"):
        make_run(config, jax.devices()[:1])


def test_offloaded_state_is_not_on_the_chip():
    config = tiny_config()
    config.learner.offload = ("optimizer", "reference")
    run = make_run(config, jax.devices()[:1])
    # Counters stay: they are not worth the way.
    assert device_bytes(run.resident["policy optimizer"]) < 64
    assert device_bytes(run.resident["reference"]) == 0
    assert device_bytes(run.resident["policy"]) > 0


def test_adapters_train_over_one_base():
    """The base is there once: under the policy and the critic, and as the reference."""
    config = tiny_config()
    whole = make_run(config, jax.devices()[:1])
    config.lora.rank = 2
    run = make_run(config, jax.devices()[:1])
    sizes = {name: device_bytes(tree) for name, tree in run.resident.items()}
    assert sizes["reference"] == device_bytes(whole.resident["reference"])
    assert sizes["policy"] < sizes["reference"] / 5 and sizes["critic"] < sizes["reference"] / 5
    by_key = {program.key: program for program in run.programs}
    for key in (Merge(), Reshard("layer"), Apply("policy"), Zeros("critic")):
        assert by_key[key].lower().as_text()
    # Rollouts hold the merged policy too, updates do not.
    held = also_held(run, Decode(8))
    assert held["merged"] == held["reference"] == sizes["reference"]
    update = Accumulate("policy", 64, 16)
    assert also_held(run, update).keys().isdisjoint({"reference", "merged"})
    assert "merged" not in also_held(run, Merge())
    stack = device_bytes(by_key[Reshard("layer")].arguments[0])
    layer = also_held(run, Reshard("layer"))
    assert (layer["merged"], layer["policy"]) == (sizes["reference"] - stack, sizes["policy"])


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_flops_of_a_micro_batch_are_six_a_parameter_and_token(remat):
    """6·N·tokens and attention's share (Kaplan et al. 2020); 2·N more with rematerialisation."""
    config = tiny_config()
    config.learner.length_buckets = (128,)
    run = make_run(config, jax.devices()[:1])
    shape = dataclasses.replace(run.policy, remat=remat, unroll=1)
    policy = nnx.eval_shape(lambda: Decoder(shape, rngs=nnx.Rngs(0)))
    critic = nnx.eval_shape(lambda: ValueModel(shape, rngs=nnx.Rngs(0)))
    learner = Learner(policy, critic, config.learner, run.mesh, trajectories=8, steps=1)
    program = next(p for p in learner.programs() if p.key == Accumulate("policy", 128, 128))
    costs = costs_of(hlo.parse(compile_program(program).text))
    rows, length = config.learner.micro_batch, 128
    trunk = parameter_count(policy) - shape.vocab_size * shape.width
    head = shape.vocab_size * shape.width
    # On CPUs scores are computed whole, above the diagonal too: 4·T²·H·E a layer.
    attention = 4 * length**2 * shape.heads * shape.head_dim * shape.layers * rows
    passes = 3 if remat == "none" else 4
    # The head is computed again in any case.
    expected = passes * (2 * trunk * rows * length + attention) + 4 * 2 * head * rows * length
    assert costs.flops == pytest.approx(expected, rel=0.1)
    assumed = Assumptions(40, 1, 12, 24)
    needed = needed_flops(run, program, assumed)
    # Needed: no remat, the head not twice, and half of the scores.
    expected = 3 * (2 * (trunk + head) * rows * length + attention / 2)
    assert needed == pytest.approx(expected, rel=0.02)


def test_an_update_holds_the_logits_of_a_chunk_and_no_more():
    """The invariant behind learner.chunk_tokens, read from the compiled update itself."""
    config = tiny_config()
    # No other axis is as long as the vocabulary or the width.
    config.model.vocab_size, config.learner.chunk_tokens = 1000, 48
    run = make_run(config, jax.devices()[:1])
    program = next(p for p in run.programs if p.key == Accumulate("policy", 128, 64))
    buffers = read_buffers(compile_program(program).buffers)
    largest = largest_with_vocabulary(buffers, 1000, run.policy.width, 1)
    # 4 rows of 64 tokens in 6 chunks of at most 11 a row.
    assert 4 * 1000 * 40 <= largest.bytes <= chunk_bytes(run) == 4 * 1000 * 52
    assert chunk_bytes(run) < 4 * 1000 * 4 * 64


def test_calls_of_a_step(run):
    """8 episodes of 40 + 2·12 + 24 tokens on 8 slots; mini-batches of 4 rows, one micro-batch."""
    assumed = Assumptions(40, 1, 12, 24, occupancy=0.5)
    calls = calls_of(run, assumed)
    assert calls[Decode(8)] == 8 * 24 / (8 * 0.5)
    # A prompt of 40 is 32 and the rest; an observation of 24 takes 32.
    assert calls[Extend(8, 32)] == 2 and calls[Extend(8, 16)] == 1
    assert calls[Score(128, 32)] == calls[Totals()] == 2
    for model in ("policy", "critic"):
        assert calls[Accumulate(model, 128, 32)] == calls[Apply(model)] == calls[Zeros(model)] == 2
    assert (calls[Reshard("ends")], calls[Reshard("layer")]) == (1, run.policy.layers)


def test_leaving_trajectories_out_is_a_program_more():
    config = tiny_config()
    config.samples = 2
    config.learner.update(algorithm="grpo", kl_in="none", entropy_coefficient=0.0)
    plain, skipping = (
        calls_of(make_run(config, jax.devices()[:1]), Assumptions(40, 1, 12, 24, occupancy=0.5))
        for config.learner.skip_zero_advantages in (False, True)
    )
    assert skipping == plain | {Kept(): 1}


@pytest.mark.parametrize("context", [100, 128, 136])
def test_what_a_step_calls_is_listed(context):
    """Positions of a cache come in whole blocks; forks copy a share of those, not of the context.

    Prompts of 40 tokens are more than a quarter of the positions where those are 128.
    """
    config = tiny_config()
    config.questions, config.samples = 4, 2
    config.rollout.max_context_tokens, config.lora.rank = context, 2
    config.learner.length_buckets = (64, 136)
    run = make_run(config, jax.devices()[:1])
    calls = calls_of(run, Assumptions(40, 1, 12, 24))
    assert calls.keys() <= {program.key for program in run.programs}
    positions = run.resident["KV cache"].positions
    assert positions >= context
    [fork] = [key for key in calls if isinstance(key, Fork)]
    assert fork == Fork(8, positions if positions == 128 else -(-positions // 4))
    assert calls[fork] == 1
    config.rollout.share_prefixes = False
    run = make_run(config, jax.devices()[:1])
    assert not any(isinstance(key, Fork) for key in calls_of(run, Assumptions(40, 1, 12, 24)))


def test_packed_rows_are_listed_and_called():
    """Mini-batches of 4 episodes of 88 tokens: two rows of 176 hold them, and 24 · 176 / 88 trained
    tokens, more than a quarter."""
    config = tiny_config()
    config.learner.packing, config.learner.micro_batch = True, 2
    config.learner.row_lengths = (128, 176)
    run = make_run(config, jax.devices()[:1])
    updates = {
        p.key: p for p in run.programs if isinstance(p.key, Accumulate) and p.key.model == "policy"
    }
    assert [(key.length, key.trained) for key in updates] == [
        (128, 32), (128, 64), (128, 128), (176, 44), (176, 88), (176, 176),
    ]  # fmt: skip
    key = Accumulate("policy", 176, 88)
    program = updates[key]
    assert program.tokens == 2 * 176
    assert {x.shape for x in program.arguments[3]} == {(2, 176)}
    assert "tensor<2x176xi32>" in program.lower().as_text()
    assumed = Assumptions(40, 1, 12, 24)
    calls = calls_of(run, assumed)
    assert calls[Score(176, 88)] == calls[key] == 2
    # Rows of 128: two micro-batches of 256 tokens for the 352 of a mini-batch, three for all 704.
    short = tiny_config()
    short.learner.packing, short.learner.micro_batch = True, 2
    short.learner.row_lengths = (128,)
    calls = calls_of(make_run(short, jax.devices()[:1]), assumed)
    [scores] = [times for key, times in calls.items() if isinstance(key, Score)]
    [passes] = [t for k, t in calls.items() if isinstance(k, Accumulate) and k.model == "policy"]
    assert (scores, passes) == (3, 4)
    # Attention sees no more than the episode.
    config = tiny_config()
    config.learner.length_buckets, config.learner.micro_batch = (128, 176), 2
    alone = make_run(config, jax.devices()[:1])
    program_alone = next(p for p in alone.programs if p.key == key)
    shape = run.policy
    pairs = 2 * 176 * (176 - 88) / 2 * 4 * shape.layers * shape.heads * shape.head_dim
    saved = needed_flops(alone, program_alone, assumed) - needed_flops(run, program, assumed)
    assert saved == pytest.approx(3 * pairs, rel=1e-6)


def test_of_shared_prefixes_the_prompt_is_counted_on():
    """Mini-batches of 4 episodes of 88 tokens, of which two samples share the 40 of the prompt: 272
    in two rows of 176, 24 · 176 / 68 of them trained; each mini-batch is scored alone."""
    config = tiny_config()
    config.samples = 2
    config.learner.update(packing=True, share_prefixes=True, micro_batch=2, row_lengths=(176,))
    run = make_run(config, jax.devices()[:1])
    calls = calls_of(run, Assumptions(40, 1, 12, 24))
    key = Accumulate("policy", 176, 88)
    count = config.questions * 2 // 4
    assert calls[Score(176, 88)] == calls[key] == count
    [program] = [program for program in run.programs if program.key == key]
    assert program.tokens == 2 * 176
    layout = program.arguments[3]
    assert (layout.rows_N.shape, layout.place_NT.shape) == ((4,), (4, 128))
    assert layout.source_RL.shape == layout.trees.end_BT.shape == (2, 176)
    text = program.lower().as_text()
    assert "tensor<2x176xi32>" in text and "tensor<4x128xi32>" in text


def test_a_cache_is_as_full_as_when_tokens_are_sampled():
    """Positions of all sampled tokens of an episode, one after the other."""
    assumed = Assumptions(40, 2, 12, 24)
    at = [40 + segment * (12 + 24) + token for segment in range(3) for token in range(12)]
    assert assumed.filled == pytest.approx(np.mean(at) + 0.5)


@pytest.mark.parametrize(
    ("method", "prompt", "searches"),
    [("search", 200, 2), ("direct", 200, 0), ("rag", 200 + 45, 0), ("ircot", 200 + 45, 2)],
)
def test_episodes_are_those_of_the_method(method, prompt, searches):
    """Who may search does so twice, and passages in the prompt are an observation more."""
    config = tiny_config()
    config.method = method
    config.rollout.max_context_tokens, config.rollout.max_observation_tokens = 1024, 50
    config.learner.length_buckets = (1024,)
    assumed = Assumptions.of(make_run(config, jax.devices()[:1]))
    assert (assumed.prompt_tokens, assumed.searches) == (prompt, searches)


def test_assumptions_that_cannot_be():
    run = make_run(tiny_config(), jax.devices()[:1])
    with pytest.raises(ValueError, match=r"rollout\.max_context_tokens=128"):
        Assumptions.of(run, prompt_tokens=500)
    with pytest.raises(ValueError, match="--occupancy"):
        Assumptions.of(run, prompt_tokens=20, occupancy=0.0)


def test_time_is_that_of_the_slowest_part():
    chip = CHIPS["v5e"]
    costs = Costs(flops=197e12, bytes=819e9 / 2, cycles=1.5e9 / 4)
    time = time_of(costs, chip)
    assert (time.compute, time.memory, time.cycles) == pytest.approx((1, 0.5, 0.25))
    assert time.seconds == pytest.approx(1) and time.limit == "compute"
    # A ring sends both ways: 100 GB/s. What runs beside nothing comes on top.
    costs.collectives["all-gather"] = 50e9
    assert time_of(costs, chip).seconds == pytest.approx(1)
    costs.blocking = 50e9
    assert time_of(costs, chip).seconds == pytest.approx(1.5)
    # 50 ms of transfer beside 20 ms of estimates and 10 ms of a kernel that has none, ten times.
    costs.overlaps[Overlap(5e9, 0.02 * 1.5e9, 0.0, 0.01 * 197e12)] = 10
    costs.overlaps[Overlap(5e9, 0.06 * 1.5e9, 0.0, 0.0)] = 10
    time = time_of(costs, chip)
    assert time.waiting == pytest.approx(10 * 0.02) and time.seconds == pytest.approx(1.7)


def test_chips():
    assert chip_of("v5e:8x8").flops == 197e12
    # A core's four matrix units of 128 x 128, two FLOPs a multiply-add.
    assert CHIPS["v5e"].clock * 4 * 128**2 * 2 == pytest.approx(197e12, rel=0.01)
    assert CHIPS["v6e"].clock * 4 * 256**2 * 2 == pytest.approx(918e12, rel=0.01)
    for name, message in (
        ("v9:2x2", "one of v4, v5e"),
        ("v5e", "v5e:8x8"),
        ("v5e:2x2x4", "v5e:8x8"),
        ("v5p:8x8", "v5p:2x2x4"),
    ):
        with pytest.raises(ValueError, match=message):
            chip_of(name)

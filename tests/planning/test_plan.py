"""The plan's figures together, its tables and JSON, and what it says to bad input."""

import dataclasses
import importlib.util
import io
import json
import os
import re
import sys
from pathlib import Path

import jax
import pytest
import rich.console

from sr1_jax import cli, plan
from sr1_jax.abstract import Program
from sr1_jax.planning import compiler, kept
from sr1_jax.planning import plan as planning
from sr1_jax.planning.compiler import Compiled, Memory
from sr1_jax.planning.plan import advice, as_json, make_plan
from sr1_jax.planning.step import kind_of
from sr1_jax.planning.sweep import Case, cases_of, growth
from sr1_jax.planning.tables import print_plan, print_sweep
from sr1_jax.planning.timing import Time
from sr1_jax.rl.program_keys import Accumulate
from sr1_jax.rollout.program_keys import Decode
from sr1_jax.training.settings import RUN, unknown_setting

HERE = Path(__file__).parent
GIB = 2**30
TINY = [
    f"--config={HERE.parent.parent}/configs/demo.py",
    "--config.rollout.slots=8",
    "--config.questions=8",
    "--config.learner.minibatch_size=8",
    "--prompt_tokens=40",
    "--segment_tokens=8",
    "--observation_tokens=20",
]


@pytest.fixture
def fake(monkeypatch):
    """No TPU compiler: the devices are those of this host, every program is the stored one and
    takes what `memory` says."""
    text = (HERE / "scan_v5e_2x2.hlo.txt").read_text()
    made = Compiled(text, "", Memory(3 * GIB, GIB, 2 * GIB, 2 * GIB, 0), 0.1)
    answers = {"": made}

    def compile_program(program):
        return next(
            found for start, found in reversed(answers.items()) if program.name.startswith(start)
        )

    def devices(topology):
        columns, rows = topology.partition(":")[2].split("x")
        return jax.devices()[: int(columns) * int(rows)]

    monkeypatch.setattr(planning, "topology_devices", devices)
    monkeypatch.setattr(planning, "compile_program", compile_program)
    return answers


@pytest.fixture
def tiny_config(monkeypatch):
    # Overrides of settings are read from there.
    monkeypatch.setattr(sys, "argv", ["plan", *TINY[:4]])
    values = plan.flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    cli.parse(values, sys.argv, required=("config",), usage="plan")
    return values.config


@pytest.fixture
def tiny_plan(fake, tiny_config):
    assumed = dict(prompt_tokens=40, segment_tokens=8, observation_tokens=20)

    def make(topology="v5e:1x2", **memory):
        fake.update(memory)
        return make_plan(tiny_config, topology, **assumed)

    return make


def rendered(show, *arguments, width=220):
    console = rich.console.Console(file=io.StringIO(), width=width)
    show(*arguments, console)
    return console.file.getvalue()


def test_a_plan_adds_up(tiny_plan):
    found = tiny_plan()
    rows = {row.name: row for row in found.rows}
    names = {"reshard layer", "prepare", "policy apply", "critic zeros", "decode 8"}
    assert names <= rows.keys()
    decode = rows["decode 8"]
    assert decode.memory.total == 4 * GIB and decode.total == 4 * GIB + sum(
        decode.also_held.values()
    )
    assert found.fits(decode) and found.all_fit
    assert found.step_seconds == pytest.approx(
        sum(row.calls * row.time.seconds for row in found.rows)
    )
    episodes = 8
    tokens = 40 + 3 * 8 + 2 * 20
    assert found.tokens_per_second == pytest.approx(episodes * tokens / found.step_seconds / 2)
    # 8 · 24 tokens on 8 slots, four fifths of them busy.
    assert decode.calls == pytest.approx(30)


def test_tables_and_json_say_what_the_plan_says(tiny_plan, tmp_path):
    found = tiny_plan()
    text = rendered(print_plan, found)
    preempted = "A checkpoint has", "Coming back takes", "While it is taken up again"
    for part in ("decode 8", "policy apply", "15.75 GiB", "Everything fits", *preempted):
        assert part in text
    # What an all-gather of the stored program sends: 9 MB, in 6 calls.
    assert re.search(r"decode 8 +all-gather +0\.01 +6\n", text)
    entry = json.loads(json.dumps(as_json(found)))
    assert sum(entry["resident"].values()) == sum(found.resident.values()) > 0
    assert entry["fits"] and entry["chips"] == 2 and entry["mesh"]["data"] == 2
    by_name = {row["program"]: row for row in entry["programs"]}
    assert by_name["decode 8"]["flops"] == 6 * 2 * 1024**3
    assert by_name["decode 8"]["collective_bytes"]["all-gather"] == 6 * 3 * 256 * 1024 * 2
    assert entry["step_seconds"] == pytest.approx(sum(entry["step_terms"].values()))
    assert entry["preemption"]["comeback_seconds"] == pytest.approx(found.preemption.comeback)
    assert entry["held_at_resumption"] <= max(row.total for row in found.rows)


def test_tables_fit_80_columns_and_break_no_word(tiny_plan, fake):
    """With the longest names there are, and with numbers of large programs."""
    text = (HERE / "scan_v5e_2x2.hlo.txt").read_text()
    fake[""] = Compiled(text, "", Memory(93 * GIB, GIB, 52 * GIB, 52 * GIB, 0), 0.1)
    found = tiny_plan()
    rows = [
        dataclasses.replace(
            row,
            calls=30.25,
            key=Accumulate("policy", 5120, 5120)
            if row.name == "policy accumulate 136/136"
            else row.key,
            costs=dataclasses.replace(row.costs, flops=1234.5e12, bytes=4321e9, blocking=321e9),
            time=Time(12.345, 12.345, 12.345, 12.345, 12.345),
            needed=row.needed or 1.0,
            vocabulary=("bf16[131072,152064]", 12 * GIB),
        )
        for row in found.rows
    ]
    large = dataclasses.replace(found, topology="v5p:16x16x16", rows=rows)
    cases = [Case("v5p:16x16x16", {"learner.micro_batch": 64}), Case("v5e:1x2", {})]
    wide = rendered(print_plan, large) + rendered(print_sweep, list(zip(cases, [large, found])))
    text = rendered(print_plan, large, width=80)
    text += rendered(print_sweep, list(zip(cases, [large, found])), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("policy accumulate 5120/5120") == wide.count("policy accumulate 5120/5120")
    # The same words; headings of columns stand on several lines.
    assert sorted(text.replace("─", "").split()) == sorted(wide.replace("─", "").split())


def test_a_sweep_says_what_more_chips_give(tiny_plan):
    """A step of 10 s in four terms on one chip is of 6 s on two: decode stays, scoring halves."""
    one, two = (dataclasses.replace(tiny_plan(t)) for t in ("v5e:1x1", "v5e:1x2"))
    seconds = {
        "score": (4.0, 2.0), "decode": (2.0, 2.0), "policy accumulate": (3.0, 1.9),
        "prepare": (1.0, 0.1),
    }  # fmt: skip
    one, two = (
        dataclasses.replace(
            plan,
            rows=[
                dataclasses.replace(
                    next(r for r in plan.rows if kind_of(r.key) == term),
                    calls=1.0,
                    time=Time(times[column], 0, 0, 0, 0),
                )
                for term, times in seconds.items()
            ],
        )
        for column, plan in enumerate((one, two))
    )
    given = growth(one, two)
    assert (given.chips, given.speed) == (2, pytest.approx(10 / 6))
    assert given.held_back == [("decode", 2.0, 2.0), ("policy accumulate", 3.0, 1.9)]
    assert growth(two, one) is None
    cases = [Case("v5e:1x1", {}), Case("v5e:1x2", {}), Case("v5e:2x2", {})]
    text = rendered(print_sweep, list(zip(cases, [one, two, "no [place] for it"])))
    assert "2 times the chips of v5e:1x1, a step 1.67 times as fast" in text
    assert "held back by decode 2.00 → 2.00 s, policy accumulate 3.00 → 1.90 s." in text
    assert "v5e:2x2 refused: no [place] for it" in text


def test_combinations_of_settings(tiny_config):
    cases = cases_of(
        ["v5e:1x1", "v5e:1x2"],
        ["learner.micro_batch=4,8", "learner.row_lengths=(64,128),(96,)", "base.remat=full,dots"],
    )
    assert len(cases) == 16 and len({str(case) for case in cases}) == 16
    assert str(cases[1]) == (
        "v5e:1x2 learner.micro_batch=4 learner.row_lengths=(64, 128) base.remat='full'"
    )
    changed = cases[-1].applied(tiny_config)
    assert (changed.learner.micro_batch, changed.learner.row_lengths) == (8, (96,))
    assert changed.base.remat == "dots"
    assert tiny_config.learner.micro_batch != 8 or tiny_config.base.remat != "dots"
    for variations, message in (
        (["learner.micro_batch"], "must be KEY=VALUE,VALUE"),
        (["steps=1", "steps=2"], "steps is given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            cases_of(["v5e:1x1"], variations)
    for variation, message in (
        ("learner.micro=4", "the config has no key learner.micro"),
        ("steps.micro=4", "the config has no key steps.micro"),
        ("learner.micro_batch=x", r"--vary=learner\.micro_batch='x'"),
    ):
        [case] = cases_of(["v5e:1x1"], [variation])
        with pytest.raises(ValueError, match=message):
            case.applied(tiny_config)


def test_what_does_not_fit_is_named_with_what_to_change(tiny_plan):
    too_much = Compiled("", "", None, 0.1, "needs 20GiB of 15.75GiB by itself")
    tight = Compiled(
        (HERE / "scan_v5e_2x2.hlo.txt").read_text(), "", Memory(15 * GIB, 0, 0, 0, 0), 0.1
    )
    found = tiny_plan(**{"policy accumulate": too_much, "decode": tight})
    failing = {row.name: row for row in found.rows if not found.fits(row)}
    assert not found.all_fit and {name.split()[0] for name in failing} == {"policy", "decode"}
    # 15 of 15.75 GiB leave less than a twentieth.
    assert "--config.rollout.slots=4" in advice(found, failing["decode 8"])
    text = rendered(print_plan, found)
    assert "needs 20GiB of 15.75GiB" in text and "--config.base.remat=full" in text
    assert as_json(found)["fits"] is False


def test_the_usual_programs_are_those_called_and_the_largest(tiny_plan):
    names = [row.name for row in tiny_plan().rows]
    assert "policy accumulate 136/136" in names  # the longest
    called = [row.name for row in tiny_plan().rows if row.calls]
    assert "policy accumulate 136/34" in called
    assert len(names) == len(set(names))


def test_both_decode_programs_are_planned(tiny_plan, tiny_config):
    tiny_config.rollout.decode_sizes = 2
    decodes = [row for row in tiny_plan("v5e:1x1").rows if isinstance(row.key, Decode)]
    # Every step is counted as one of all slots; of the smaller program memory and time are shown
    # with --every.
    assert [(row.key.slots, row.calls > 0) for row in decodes] == [(8, True)]
    assumed = dict(prompt_tokens=40, segment_tokens=8, observation_tokens=20)
    every = make_plan(tiny_config, "v5e:1x1", every=True, only="decode", **assumed)
    assert [row.name for row in every.rows] == ["decode 2", "decode 8"]


def test_of_a_part_of_a_step_no_preemption_is_priced(tiny_plan, tiny_config):
    whole = tiny_plan("v5e:1x1")
    assert whole.preemption.step == pytest.approx(whole.step_seconds)
    assumed = dict(prompt_tokens=40, segment_tokens=8, observation_tokens=20)
    part = make_plan(tiny_config, "v5e:1x1", only="decode", **assumed)
    assert part.step_seconds > 0 and part.preemption is None


def test_flags_for_cpus_are_kept_from_the_tpu_compiler(monkeypatch):
    """libtpu ends the process at a flag it does not know."""
    shared = "--xla_force_host_platform_device_count=8"
    given = f"--xla_cpu_use_fusion_emitters=false {shared} --xla_gpu_autotune_level=0"
    monkeypatch.setenv("XLA_FLAGS", given)
    with compiler._flags_it_knows():
        assert os.environ["XLA_FLAGS"] == shared
    assert os.environ["XLA_FLAGS"] == given
    monkeypatch.delenv("XLA_FLAGS")
    with compiler._flags_it_knows():
        assert "XLA_FLAGS" not in os.environ


def test_what_the_compiler_refuses_is_a_row_of_the_plan():
    class Refused:
        def lower(self):
            raise jax.errors.JaxRuntimeError(message)

    message = "INTERNAL: no route\nsee elsewhere"
    assert compiler.compile_program(Refused()).problem == "does not compile: INTERNAL: no route"
    message = "RESOURCE_EXHAUSTED: temporaries (40.0G) exceeds available HBM (15.75G)."
    found = compiler.compile_program(Refused())
    assert found.memory is None and found.problem == "needs 40.0GiB of 15.75GiB by itself"


def test_kept_programs_are_not_compiled_again(tmp_path, monkeypatch):
    calls = []

    def compile_program(program):
        calls.append(program.name)
        memory = Memory(1, 2, 3, 1, 0) if program.name == "fits" else None
        return Compiled("text", "buffers", memory, 0.5, "" if memory else "too large")

    monkeypatch.setattr(kept, "compile_program", compile_program)
    monkeypatch.setattr(kept.importlib.metadata, "version", lambda name: "0.1")
    one, other = (
        Program(name, jax.jit(function), (jax.ShapeDtypeStruct((3,), float),))
        for name, function in (("fits", lambda x: x + 1), ("fails", lambda x: x + 2))
    )
    first = [kept.compile_kept(program, tmp_path / "kept") for program in (one, other)]
    again = [kept.compile_kept(program, tmp_path / "kept") for program in (one, other)]
    assert calls == ["fits", "fails"] and again == first and first[0].memory.total == 5
    # Another compiler might say something else.
    monkeypatch.setattr(kept.importlib.metadata, "version", lambda name: "0.2")
    kept.compile_kept(one, tmp_path / "kept")
    assert calls == ["fits", "fails", "fits"]


@pytest.fixture
def error_of(monkeypatch, capsys):
    """Function of arguments -> the one line that the program says on stderr as it fails."""
    monkeypatch.delenv("SR1_JAX_TRACEBACK", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plan", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            cli.run(plan.main)
        assert exit_info.value.code == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("error: ")
        return error.splitlines()[-1]

    return run


def test_errors(error_of, fake):
    assert "--config is missing" in error_of("--topology=v5e:2x2")
    assert "--topology is missing" in error_of(TINY[0])
    assert "must be one of v4" in error_of(TINY[0], "--topology=v9:2x2")
    assert "v5p:2x2x4" in error_of(TINY[0], "--sweep=v5e:2x2,v5p:8x8")
    error = error_of(TINY[0], "--topology=v5e:2x2", "--config.mesh.tensor=3")
    assert "does not fit 4 devices" in error and "--config.mesh.fsdp=-1" in error
    error = error_of(TINY[0], "--topology=v5e:2x2", "--config.rollout.slots=6")
    assert "rollout.slots=6 does not divide over the 4" in error
    error = error_of(*TINY, "--topology=v5e:2x2", "--searches=9")
    assert "rollout.max_context_tokens=136" in error


def test_the_command_writes_json_and_shows_progress(fake, monkeypatch, capsys, tmp_path):
    path = tmp_path / "plan.json"
    argv = ["plan", *TINY, "--sweep=v5e:1x1,v5e:1x2", f"--json={path}", "--only=policy,critic z"]
    monkeypatch.setattr(sys, "argv", argv)
    plan.main(argv)
    said = capsys.readouterr()
    assert "compiling policy apply" in said.err and "All cases" in said.out
    plans = json.loads(path.read_text())
    assert [entry["topology"] for entry in plans] == ["v5e:1x1", "v5e:1x2"]
    for entry in plans:
        names = [row["program"] for row in entry["programs"]]
        assert "critic zeros" in names and "policy apply" in names
        assert all(name.startswith("policy") for name in names if name != "critic zeros")


def test_a_missing_compiler_is_named_with_how_to_get_it(error_of, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        compiler.importlib.util, "find_spec", lambda name: None if name == "libtpu" else found(name)
    )
    assert "pip install libtpu" in error_of(TINY[0], "--topology=v5e:2x2")


@pytest.mark.slow
def test_the_tpu_compiler(tiny_config):
    """A whole plan with the real compiler; `pip install libtpu`."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    with pytest.raises(ValueError, match="none the compiler knows"):
        compiler.topology_devices("v5e:3x7")
    assert len(compiler.topology_devices("v4:2x2x1")) == 4
    found = make_plan(
        tiny_config, "v5e:2x2", prompt_tokens=40, segment_tokens=8, observation_tokens=20
    )
    assert found.all_fit and found.step_seconds > 0
    update = next(r for r in found.rows if r.name.startswith("policy accumulate") and r.calls)
    assert update.costs.flops > 0 and update.costs.cycles > 0
    assert update.vocabulary is not None and not found.holds_too_many_logits(update)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, 4], ids=["a head a row", "two heads a row"])
def test_the_tpu_compiler_copies_no_cache(tiny_config, heads):
    """Decoding holds less beside the cache than the keys of one layer, and reads what is filled."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    tiny_config.base.dtype = tiny_config.rollout.weights = "bfloat16"
    tiny_config.model.update(width=256, heads=heads, kv_heads=heads, layers=2)
    # Long enough that the compiler cannot keep a layer's cache in vector memory.
    tiny_config.rollout.max_context_tokens = 16384
    tiny_config.learner.length_buckets = (16384,)
    found = make_plan(
        tiny_config, "v5e:2x2", only="decode", prompt_tokens=40, segment_tokens=8,
        observation_tokens=20,
    )  # fmt: skip
    (decode,) = found.rows
    assert decode.memory.aliased >= found.resident["KV cache"]
    one_layer = found.resident["KV cache"] / 2 / 2
    assert decode.memory.temporaries < one_layer
    assert decode.costs.unknown_kernels == 0
    # 75 tokens and half a block of 512, of 16,384, and what is no cache.
    rest = found.resident["rollout weights"] + 2**20
    assert decode.costs.bytes < 0.03 * found.resident["KV cache"] + rest


def test_a_case_that_is_refused_does_not_end_a_sweep(fake, monkeypatch, capsys, tmp_path):
    path = tmp_path / "plan.json"
    vary = "--vary=learner.micro_batch=4,3"
    argv = ["plan", *TINY, "--topology=v5e:1x2", vary, f"--json={path}", "--only=policy"]
    monkeypatch.setattr(sys, "argv", argv)
    plan.main(argv)
    [entry] = json.loads(path.read_text())
    assert entry["settings"] == {"learner.micro_batch": 4}
    said = " ".join(capsys.readouterr().out.split())
    assert "learner.micro_batch=3 refused: A mini-batch of 8 trajectories does not divide" in said


def test_a_sweep_of_which_all_is_refused_fails(fake, error_of):
    error = error_of(*TINY, "--topology=v5e:1x2", "--vary=learner.micro_batch=3,5")
    assert "micro-batches of learner.micro_batch=3" in error
    assert "no key learner.micro" in error_of(*TINY, "--topology=v5e:1x2", "--vary=learner.micro=1")

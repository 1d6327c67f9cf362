"""The list of programs on slots: what warm-up calls, and what shapes are listed for."""

import jax
import pytest

from sr1_jax.rollout import programs
from sr1_jax.rollout.listing import rollout_programs
from sr1_jax.rollout.lockstep import SlotLayout
from sr1_jax.rollout.program_keys import (
    Decode,
    Extend,
    Fork,
    Reshard,
    extend_columns,
    fork_length,
    programs_on_slots,
)
from sr1_jax.rollout.settings import default_config
from sr1_jax.sharding import make_mesh


def small_config(**changes):
    config = default_config()
    config.update(slots=16, max_context_tokens=100, extend_buckets=(8, 32), decode_steps=4)
    config.update(changes)
    return config


def test_names_are_those_that_people_read():
    keys = (Reshard("layer"), Reshard("ends"), Extend(256, 512), Fork(256, 4096), Decode(256))
    assert [str(key) for key in keys] == [
        "reshard layer", "reshard ends", "extend 256×512", "fork 256×4096", "decode 256",
    ]  # fmt: skip


@pytest.mark.parametrize(("sizes", "decode"), [(1, [16]), (2, [4, 16])])
def test_rows_are_those_of_all_devices(sizes, decode):
    """16 slots over two devices: 8 each, and down to a sixteenth of them."""
    mesh = make_mesh(2, 1, 1, devices=jax.devices()[:2])
    config = small_config(decode_sizes=sizes)
    found = programs_on_slots(config, SlotLayout(mesh, 16, sizes), positions=128)
    assert [key.slots for key in found if isinstance(key, Decode)] == decode
    forks = {(key.rows, key.length) for key in found if isinstance(key, Fork)}
    assert forks == {(rows, length) for rows in (2, 4, 8, 16) for length in (32, 128)}
    extends = {(key.rows, key.columns) for key in found if isinstance(key, Extend)}
    assert extends == {(rows, columns) for rows in (2, 4, 8, 16) for columns in (8, 32)}


def test_calls_take_the_smallest_size_that_holds_them():
    assert [fork_length(n, 128) for n in (1, 32, 33, 128)] == [32, 32, 128, 128]
    assert [extend_columns(n, (8, 32)) for n in (1, 8, 9, 32, 100)] == [8, 8, 32, 32, 32]


@pytest.mark.parametrize("sizes", [1, 2])
def test_warm_up_calls_every_program_that_is_listed(make_engine, tiny_decoder, monkeypatch, sizes):
    """Each call has the shapes and static arguments of one program of the list, and each program of
    the list is called; `decode_sizes=2` has two decode programs."""
    engine = make_engine(decode_sizes=sizes)
    config, mesh = engine._config, engine._mesh
    listed = {program.key: program for program in rollout_programs(tiny_decoder, config, mesh)}
    assert sum(isinstance(key, Decode) for key in listed) == sizes

    def signature(arguments, settings):
        shapes = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(arguments)]
        return str((shapes, sorted((k, v) for k, v in settings.items() if k != "decoder")))

    by_signature = {
        signature(program.arguments, program.settings): key
        for key, program in listed.items()
        if not isinstance(key, Reshard)
    }
    called = set()
    for name in ("extend", "fork", "decode"):
        whole = getattr(programs, name)

        def spy(*arguments, whole=whole, **settings):
            known = {key: value for key, value in settings.items() if key != "mesh"}
            called.add(by_signature[signature(arguments, known)])
            return whole(*arguments, **settings)

        monkeypatch.setattr(programs, name, spy)
    engine.warm_up()
    assert called == {key for key in listed if not isinstance(key, Reshard)}

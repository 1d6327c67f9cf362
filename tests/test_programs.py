"""A second start reads the programs of the first; a folder that cannot hold them is refused."""

import collections
import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from sr1_jax import ask, evaluate, programs
from sr1_jax.config_files import load_config
from sr1_jax.programs import kept_programs
from sr1_jax.train import train
from sr1_jax.training.settings import unknown_setting

TINY = Path(__file__).parent / "training" / "tiny_config.py"


@contextlib.contextmanager
def counted():
    """What JAX asks its cache while this is open: counts of cache_hits and cache_misses."""
    counts = collections.Counter()

    def note(event, **_):
        if event.startswith("/jax/compilation_cache/cache_"):
            counts[event.rpartition("/")[2]] += 1

    jax.monitoring.register_event_listener(note)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_listener(note)


@pytest.fixture
def every_program(monkeypatch):
    """Keeps programs however soon they are compiled, and where the user says nothing of them."""
    monkeypatch.setattr(programs, "_LEAST_SECONDS", 0.0)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


def started(setting, workdir, constant=2.0):
    """Counts of a process that compiles one program and knows of none."""
    jax.clear_caches()
    with counted() as counts, kept_programs(setting, workdir):
        assert jax.jit(lambda x: x * constant)(jnp.float32(3.0)) == 3.0 * constant
    return dict(counts)


def entries(folder):
    return sorted(folder.glob("*-cache"))


def test_a_second_start_finds_the_programs_of_the_first(every_program, tmp_path):
    first = started("workdir", tmp_path)
    kept = entries(tmp_path / "programs")
    assert first["cache_misses"] == len(kept) >= 1 and "cache_hits" not in first
    assert started("workdir", tmp_path) == {"cache_hits": len(kept)}
    assert entries(tmp_path / "programs") == kept
    assert started("workdir", tmp_path, constant=5.0)["cache_misses"] == 1


def test_a_folder_of_ones_own_is_shared_by_runs(every_program, tmp_path):
    shared = tmp_path / "shared"
    assert "cache_hits" not in started(str(shared), tmp_path / "a")
    assert "cache_misses" not in started(str(shared), tmp_path / "b")
    assert not (tmp_path / "a").exists()


def test_no_programs_are_kept(every_program, tmp_path):
    assert started("", tmp_path) == {} and not list(tmp_path.iterdir())


def test_without_a_workdir_the_users_cache_holds_them(every_program, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    started("workdir", None)
    assert entries(tmp_path / "sr1_jax" / "programs")


def test_jaxs_variable_comes_before_the_default_alone(every_program, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "variable"))
    started("workdir", tmp_path / "run")
    assert entries(tmp_path / "variable") and not (tmp_path / "run").exists()
    started(str(tmp_path / "setting"), tmp_path / "run")
    assert entries(tmp_path / "setting")


def test_what_jax_had_is_put_back(every_program, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(KeyError), kept_programs("workdir", tmp_path):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")
        raise KeyError
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize("setting", ["file/programs", "nowhere://bucket/programs"])
def test_a_folder_that_cannot_hold_them_is_told(every_program, monkeypatch, tmp_path, setting):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    message = rf"compilation_cache={setting}: programs cannot be kept in {setting} \(\w+: "
    with pytest.raises(ValueError, match=message), kept_programs(setting, tmp_path):
        pass


def test_a_program_that_was_cut_short_is_written_again(every_program, tmp_path):
    """As a process leaves it that is killed while it writes."""
    started("workdir", tmp_path)
    *_, newest = sorted(entries(tmp_path / "programs"), key=lambda path: path.stat().st_mtime)
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert started("workdir", tmp_path)["cache_misses"] == 1
    assert "cache_misses" not in started("workdir", tmp_path)


@pytest.mark.slow
def test_a_run_that_is_taken_up_again_evaluated_and_asked(every_program, tmp_path, capsys):
    config = load_config(str(TINY), unknown_setting)
    config.steps = 2
    jax.clear_caches()
    with counted() as first:
        train(config, tmp_path)
    config.steps = 3
    jax.clear_caches()
    with counted() as second:
        train(config, tmp_path)
    assert first["cache_misses"] > 20
    # What the first had no occasion for: to restore, and the steps between.
    assert second["cache_hits"] > 20 > second["cache_misses"]

    for main, flags in (
        (evaluate.main, [f"--questions={tmp_path}/data/heldout.jsonl", "--limit=4"]),
        (ask.main, ["--json", "who?"]),
    ):
        command = [f"--config={TINY}", f"--workdir={tmp_path}", *flags]
        command.append(f"--corpus={tmp_path}/data/corpus.jsonl")
        main(["program", *command])
        jax.clear_caches()
        with counted() as again:
            main(["program", *command])
        assert again["cache_hits"] > 5 > again["cache_misses"]

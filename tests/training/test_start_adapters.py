"""Runs that start from adapters in a folder of peft."""

import json

import jax
import numpy as np
import pytest
import small_checkpoints
from flax import nnx

from sr1_jax import export
from sr1_jax.models import load_pretrained
from sr1_jax.models.lora import LoraConfig, add_adapters, merged_model
from sr1_jax.models.peft_folder import save_adapters
from sr1_jax.sharding import make_mesh
from sr1_jax.training.base import Policy
from sr1_jax.training.checks import check_config
from sr1_jax.training.learning import abstract_models, models_to_train
from sr1_jax.training.policies import check_base, lora_config, trained_policy
from sr1_jax.training.settings import default_config

MESH = make_mesh(1, 1, 1, devices=jax.devices()[:1])
IDS = np.array([[1, 2, 289]])
LORA = LoraConfig(rank=2, alpha=6.0, targets=("q", "down"))


@pytest.fixture
def adapted(tmp_path):
    """A model with adapters that change what it says, as another run might have left them."""
    (tmp_path / "policy").mkdir()
    small_checkpoints.write_folder(tmp_path / "policy", small_checkpoints.train_backend())
    model = add_adapters(load_pretrained(tmp_path / "policy")[0], LORA, seed=3)
    state = nnx.state(model, nnx.LoRAParam)
    nnx.update(model, jax.tree.map(lambda x: x + 0.3, state))
    save_adapters(model, tmp_path / "adapters")
    return model


@pytest.fixture
def config(tmp_path, adapted):
    config = default_config()
    config.base.path, config.lora.path = str(tmp_path / "policy"), str(tmp_path / "adapters")
    return config


def test_training_starts_from_them(config, adapted, equal_trees):
    check_config(config, inputs=False)
    check_base(config, MESH)
    assert lora_config(config) == LORA
    plain, tokenizer = load_pretrained(config.base.path)
    policy, critic = models_to_train(config, plain, tokenizer, MESH)
    equal_trees(nnx.state(policy, nnx.LoRAParam), nnx.state(adapted, nnx.LoRAParam))
    assert critic.config.lora == LORA
    assert [model.config.lora for model in abstract_models(config)] == [LORA, LORA]
    # So do the scores before training.
    start = Policy.of(plain, tokenizer, {})
    before = nnx.merge(nnx.graphdef(start.shape), start.before_training(config, MESH))
    np.testing.assert_allclose(before(IDS), adapted(IDS), atol=1e-5)
    assert np.abs(before(IDS) - plain(IDS)).max() > 0.01


def test_a_policy_before_training_has_them(config, adapted, tmp_path, equal_trees):
    merged, _, what = trained_policy(config, tmp_path / "run", MESH, base=True)
    assert what == "base" and merged.config.lora is None
    equal_trees(nnx.state(merged), nnx.state(merged_model(adapted)))
    beside, _, _ = trained_policy(config, tmp_path / "run", MESH, base=True, merge=False)
    assert beside.config.lora == LORA


def test_export_of_adapters(config, adapted, tmp_path, equal_trees, monkeypatch):
    """What --adapter writes starts a run as the folder did that it came from."""
    file = tmp_path / "config.py"
    file.write_text(
        "from sr1_jax.training.settings import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.base.path, config.lora.path = {config.base.path!r}, {config.lora.path!r}\n"
        "    config.mesh.data = 1\n"
        "    return config\n"
    )
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(export, "make_mesh", lambda *_: MESH)
    flags = [f"--config={file}", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]
    argv = ["export", *flags, "--base", "--adapter"]
    monkeypatch.setattr("sys.argv", argv)
    export.main(argv)
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == config.base.path
    config.lora.path = str(tmp_path / "out")
    policy, _, _ = trained_policy(config, tmp_path / "run", MESH, base=True, merge=False)
    equal_trees(nnx.state(policy, nnx.LoRAParam), nnx.state(adapted, nnx.LoRAParam))


def test_refused(config):
    config.lora.rank = 4
    with pytest.raises(ValueError, match=r"lora\.rank=4, but the adapters in .* are of rank 2"):
        check_base(config, MESH)
    config.lora.rank, config.lora.path = 2, "nowhere"
    with pytest.raises(ValueError, match=r"nowhere/adapter_config\.json: there is no such file"):
        check_base(config, MESH)
    config.lora.path = "s3://bucket/adapters"
    with pytest.raises(ValueError, match=r"lora\.path"):
        check_config(config, inputs=False)

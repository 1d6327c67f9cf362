"""A run with adapters: what it saves, that it goes on, what it exports."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from sr1_jax.models import load_pretrained, save_pretrained
from sr1_jax.train import train
from sr1_jax.training.policies import starting_policy, trained_policy

IDS = np.random.default_rng(0).integers(0, 300, (2, 12))


@pytest.fixture
def lora_config(derived):
    derived.lora.rank = 2
    derived.lora.alpha = 8.0
    derived.steps = 4
    return derived


@pytest.mark.slow  # three trainings
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_run_saves_adapters_alone_and_goes_on(lora_config, tmp_path, mesh, equal_trees):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(lora_config, whole)
    lora_config.steps = 2
    train(lora_config, parts)
    lora_config.steps = 4
    train(lora_config, parts)
    policies = [trained_policy(lora_config, folder, mesh) for folder in (whole, parts)]
    assert [what for _, _, what in policies] == ["step 4", "step 4"]
    equal_trees(*(nnx.state(policy) for policy, _, _ in policies))

    with ocp.PyTreeCheckpointer() as reader:
        saved = reader.restore((whole / "checkpoints" / "4" / "state").resolve())
    paths = [jax.tree_util.keystr(path, simple=True, separator="/")
             for path, _ in jax.tree_util.tree_leaves_with_path(saved)]  # fmt: skip
    kernels = [p for p in paths if "kernel" in p or "embedding" in p or "norm" in p]
    assert any("lora_a" in path for path in paths)
    assert all("critic" in path and "/head/" in path for path in kernels)

    # What is exported computes the same as base and adapters, and is not the base.
    policy, tokenizer, _ = policies[0]
    save_pretrained(policy, tokenizer, tmp_path / "out", dtype="float32")
    exported, _ = load_pretrained(tmp_path / "out")
    np.testing.assert_allclose(exported(IDS), policy(IDS), atol=1e-6)
    base, _ = starting_policy(lora_config, whole, mesh)
    assert np.abs(np.asarray(policy(IDS)) - np.asarray(base(IDS))).max() > 1e-4
    rows = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(row["policy/gradient_norm"] > 0 for row in rows)

    lora_config.lora.alpha = 4.0
    with pytest.raises(ValueError, match=r"made with lora\.alpha=8\.0, now it is 4\.0"):
        train(lora_config, whole)

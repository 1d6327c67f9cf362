"""Adapters in the folders of peft: every value lands where it belongs, and comes back."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.lora import TARGETS, LoraConfig, add_adapters, merged_model
from sr1_jax.models.peft_folder import load_adapters, read_lora_config, save_adapters
from sr1_jax.sharding import make_mesh, tree_shardings

CONFIG = DecoderConfig(
    vocab_size=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=6, ff_width=20, qkv_bias=True
)
IDS = np.random.default_rng(0).integers(0, 32, (2, 9))
# As transformers calls them: module, inputs, outputs.
MODULES = {
    "self_attn.q_proj": (16, 24),
    "self_attn.k_proj": (16, 12),
    "self_attn.v_proj": (16, 12),
    "self_attn.o_proj": (24, 16),
    "mlp.gate_proj": (16, 20),
    "mlp.up_proj": (16, 20),
    "mlp.down_proj": (20, 16),
}
OURS = {"self_attn": "attention", "mlp": "ff"}


def noisy(model, seed, *filters):
    rng = np.random.default_rng(seed)
    state = nnx.state(model, *filters)
    noise = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, x.dtype), state)
    nnx.update(model, jax.tree.map(jnp.add, state, noise))
    return model


@pytest.fixture(scope="module")
def base():
    return noisy(Decoder(CONFIG, rngs=nnx.Rngs(0)), 1, nnx.Param)


def write_peft(folder, modules, rank=3, tensors=None, **changes):
    """What peft writes, by hand: A is [rank, inputs], B [outputs, rank]."""
    rng = np.random.default_rng(2)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 12,
        "target_modules": [name.split(".")[-1] for name in modules], "bias": "none",
        "lora_dropout": 0.05, "use_dora": False, "fan_in_fan_out": False, "modules_to_save": None,
        "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True,
    } | changes  # fmt: skip
    if tensors is None:
        tensors = {}
        for layer in range(CONFIG.layers):
            for name in modules:
                inputs, outputs = MODULES[name]
                where = f"base_model.model.model.layers.{layer}.{name}.lora_"
                tensors[where + "A.weight"] = rng.normal(size=(rank, inputs))
                tensors[where + "B.weight"] = rng.normal(size=(outputs, rank))
    tensors = {name: np.asarray(x, np.float32) for name, x in tensors.items()}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("modules", [list(MODULES), ["self_attn.o_proj", "mlp.down_proj"]], ids=len)
def test_adapters_add_their_matrix_product(base, tmp_path, modules, rslora):
    """Against kernels [outputs, inputs] to which scale · B A was added by hand."""
    tensors = write_peft(tmp_path, modules, use_rslora=rslora)
    lora = read_lora_config(tmp_path, "qwen2")
    scale = 12 / math.sqrt(3) if rslora else 12 / 3
    assert (lora.rank, lora.scale) == (3, pytest.approx(scale))
    model = add_adapters(base, lora, seed=7)
    load_adapters(model, tmp_path)
    before = nnx.to_pure_dict(nnx.state(base))
    after = nnx.to_pure_dict(nnx.state(merged_model(model)))
    for name, (inputs, outputs) in MODULES.items():
        block, module = name.split(".")
        kernels = [
            np.asarray(params["trunk"]["layers"][OURS[block]][module.split("_")[0]]["kernel"])
            for params in (before, after)
        ]
        for layer in range(CONFIG.layers):
            kernel, merged = (x[layer].reshape(inputs, outputs).T for x in kernels)
            where = f"base_model.model.model.layers.{layer}.{name}.lora_"
            if name in modules:
                kernel = kernel + scale * (
                    tensors[where + "B.weight"] @ tensors[where + "A.weight"]
                )
            np.testing.assert_allclose(merged, kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [TARGETS, ("q", "down")], ids=len)
def test_round_trip(base, tmp_path, targets):
    lora = LoraConfig(rank=3, alpha=4.5, targets=targets)
    model = noisy(add_adapters(base, lora, seed=5), 3, nnx.LoRAParam)
    save_adapters(model, tmp_path / "out", base="models/base")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["lora_alpha"]) == ("models/base", 4.5)
    assert read_lora_config(tmp_path / "out", "qwen2") == lora
    again = add_adapters(base, lora, seed=6)
    load_adapters(again, tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    with pytest.raises(ValueError, match="exists and is not empty"):
        save_adapters(model, tmp_path / "out")


def test_what_is_written_is_what_peft_reads(base, tmp_path):
    lora = LoraConfig(rank=3, alpha=12.0)
    theirs = write_peft(tmp_path / "in", list(MODULES))
    model = add_adapters(base, lora, seed=5)
    load_adapters(model, tmp_path / "in")
    save_adapters(model, tmp_path / "out")
    ours = safetensors.numpy.load_file(tmp_path / "out/adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 12, "LORA")
    assert sorted(config["target_modules"]) == sorted(name.split(".")[1] for name in MODULES)


def test_adapters_stay_where_they_lie(base, tmp_path):
    write_peft(tmp_path, list(MODULES))
    mesh = make_mesh(2, 2, 2)
    lora = read_lora_config(tmp_path, "qwen2")
    model = add_adapters(base, lora, seed=7, mesh=mesh)
    where = tree_shardings(nnx.state(model, nnx.LoRAParam), mesh)
    load_adapters(model, tmp_path)
    assert jax.tree.map(lambda x: x.sharding, nnx.state(model, nnx.LoRAParam)) == where
    one = add_adapters(base, lora, seed=7)
    load_adapters(one, tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal, *(nnx.state(m, nnx.LoRAParam) for m in (model, one))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r'adapter_config\.json: peft_type="IA3" must be \'LORA\''),
        ({"peft_type": None}, r"adapter_config\.json: peft_type=null must be a string"),
        ({"r": "8"}, r'adapter_config\.json: r="8" must be a positive integer'),
        ({"lora_alpha": None}, r"lora_alpha=null must be a positive number"),
        ({"bias": "all"}, r'bias="all" must be \'none\''),
        ({"use_dora": True}, r"use_dora=true must be False"),
        ({"rank_pattern": {"q_proj": 4}}, r"rank_pattern=.* must be \{\}"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=.* must be None"),
        ({"target_modules": "q.*"}, r'target_modules="q\.\*" must be a list of strings'),
        ({"target_modules": ["lm_head"]}, r"must hold only q_proj, .*which 'lm_head' is not"),
        ({"target_modules": []}, r"target_modules=\[\] must name at least one module"),
    ],
)
def test_bad_configs(tmp_path, changes, message):
    write_peft(tmp_path, ["self_attn.q_proj"], **changes)
    with pytest.raises(ValueError, match=message):
        read_lora_config(tmp_path, "qwen2")


def test_every_linear_map(tmp_path):
    write_peft(tmp_path, list(MODULES), target_modules="all-linear")
    assert read_lora_config(tmp_path, "llama").targets == TARGETS


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({Q + "A.weight": None}, r"layers\.1\.self_attn\.q_proj\.lora_A\.weight is missing"),
        (
            {Q + "B.weight": np.ones((23, 3))},
            r"has shape \[23, 3\], but the model asks for \[24, 3",
        ),
        ({Q + "A.weight": np.full((3, 16), np.nan)}, r"lora_A\.weight holds NaN or infinite"),
        ({"x": np.ones(2)}, r"adapter_model\.safetensors: tensors that have no place: x\."),
    ],
)
def test_bad_tensors(base, tmp_path, change, message):
    tensors = write_peft(tmp_path, ["self_attn.q_proj"]) | change
    tensors = {name: x for name, x in tensors.items() if x is not None}
    write_peft(tmp_path, ["self_attn.q_proj"], tensors=tensors)
    model = add_adapters(base, read_lora_config(tmp_path, "qwen2"), seed=7)
    with pytest.raises(ValueError, match=message):
        load_adapters(model, tmp_path)


def test_missing_files(base, tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json: there is no such file"):
        read_lora_config(tmp_path, "qwen2")
    write_peft(tmp_path, ["self_attn.q_proj"])
    model = add_adapters(base, read_lora_config(tmp_path, "qwen2"), seed=7)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors file.* not read"):
        load_adapters(model, tmp_path)


def test_other_adapters_than_the_models(base, tmp_path):
    write_peft(tmp_path, ["self_attn.q_proj"])
    model = add_adapters(base, LoraConfig(rank=4), seed=7)
    with pytest.raises(ValueError, match=r"LoraConfig\(rank=3, .* but the model has .*rank=4"):
        load_adapters(model, tmp_path)
    with pytest.raises(ValueError, match="has no adapters; export it whole"):
        save_adapters(base, tmp_path / "out")

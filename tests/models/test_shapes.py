"""Published models: the size their authors state, and folders that are something else."""

import dataclasses

import jax
import pytest
from flax import nnx

from sr1_jax.models import Decoder, parameter_count, preset_config
from sr1_jax.models.shapes import SHAPES, check_is_preset


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_of_a_published_model(name):
    config = preset_config(name, dtype="bfloat16", remat=True)
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    assert parameter_count(model) == SHAPES[name].parameters
    # The name says it in billions; that of Qwen3-0.6B leaves its embedding's rounding out.
    assert parameter_count(model) == pytest.approx(float(name.split("-")[1][:-1]) * 1e9, rel=0.25)
    assert (config.dtype, config.param_dtype, config.remat) == ("bfloat16", "float32", "full")
    ids = jax.ShapeDtypeStruct((1, 8), "int32")
    logits = nnx.eval_shape(lambda model, ids: model(ids), model, ids)
    assert logits.shape == (1, 8, config.vocab_size)


def test_an_unknown_preset():
    with pytest.raises(ValueError, match=r"No model is called 'qwen2\.5-8b'; known are qwen2\.5-0"):
        preset_config("qwen2.5-8b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=16), "f.json: by hidden_size the model's width is 16, but that of .* is 3584"),
        (dict(layers=2), "by num_hidden_layers the model's layers is 2, but .* is 28"),
        (dict(rope_theta=1e4), "by rope_theta the model's rope_theta is 10000.0, but .* 1000000.0"),
        (dict(qkv_bias=False), "by model_type the model's qkv_bias is False, but .* is True"),
        (dict(vocab_size=152_065), "by vocab_size the model's vocab_size is 152065"),
        (dict(tied_embeddings=True), "by tie_word_embeddings the model's tied_embeddings is True"),
    ],
)
def test_another_model_is_refused(changes, message):
    config = preset_config("qwen2.5-7b")
    with pytest.raises(ValueError, match=message):
        check_is_preset(dataclasses.replace(config, **changes), "qwen2.5-7b", "f.json")


def test_how_it_is_computed_is_free():
    config = preset_config("qwen2.5-7b", dtype="bfloat16", remat=True, max_positions=131_072)
    check_is_preset(config, "qwen2.5-7b", "config.json")

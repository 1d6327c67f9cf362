"""Folders that are written: every tensor as it was read, whole or not at all."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from small_checkpoints import FAMILIES, check_values

from sr1_jax.models import export, families, load_pretrained, save_pretrained
from sr1_jax.models.lora import LoraConfig, add_adapters, merged_model

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def tensors_in(folder):
    return {
        name: array
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in safetensors.numpy.load_file(file).items()
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_read_is_written(write_folder, tmp_path, family, tied):
    folder, raw, tensors = write_folder(model_type=family, tie_word_embeddings=tied)
    model, tokenizer = load_pretrained(folder)
    save_pretrained(model, tokenizer, tmp_path / "out", dtype="float32")
    written = tensors_in(tmp_path / "out")
    assert written.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(written[name], array)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert {key: config[key] for key in raw} == raw
    assert config["architectures"] == [CLASSES[family]]
    # The default of transformers for this family would be a window.
    assert ("sliding_window" in config) == (family == "mistral")
    again, tokenizer_again = load_pretrained(tmp_path / "out")
    assert again.config == model.config
    assert tokenizer_again.encode("Hamlet 1601") == tokenizer.encode("Hamlet 1601")
    assert (tokenizer_again.eos_ids, tokenizer_again.pad_id) == (
        tokenizer.eos_ids,
        tokenizer.pad_id,
    )


def test_rope_scaling_end_tokens_and_template_survive(write_folder, tmp_path):
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    folder, _, _ = write_folder(rope_scaling=rope, eos_token_id=[2, 3], max_position_embeddings=512)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    model, tokenizer = load_pretrained(folder)
    save_pretrained(model, tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["rope_scaling"], config["max_position_embeddings"]) == (rope, 512)
    again, tokenizer_again = load_pretrained(tmp_path / "out")
    assert again.config == model.config
    assert tokenizer_again.eos_ids == (2, 3)
    assert tokenizer_again.chat_template == "{{ messages }}"


def test_a_family_is_a_row_of_one_table(write_folder, tmp_path, monkeypatch):
    """A model whose family differs from a known one in its name alone is read and written."""
    monkeypatch.setitem(families.FAMILIES, "llama9", families.Family(families._TRUNK, "Llama9LM"))
    folder, _, tensors = write_folder(model_type="llama9", tensors=None)
    model, tokenizer = load_pretrained(folder)
    check_values(model, tensors)
    save_pretrained(model, tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama9", ["Llama9LM"])


def test_shards_and_their_index(write_folder, tmp_path):
    folder, _, tensors = write_folder()
    model, tokenizer = load_pretrained(folder)
    limit = 6000
    save_pretrained(model, tokenizer, tmp_path / "out", shard_bytes=limit)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    for file in files:
        held = safetensors.numpy.load_file(file)
        assert all(index["weight_map"][name] == file.name for name in held)
        assert sum(x.nbytes for x in held.values()) <= limit or len(held) == 1
        assert {x.dtype for x in held.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == 2 * sum(x.size for x in tensors.values())
    load_pretrained(tmp_path / "out")


def test_nothing_is_left_half_written(write_folder, tmp_path, monkeypatch):
    folder, _, _ = write_folder()
    model, tokenizer = load_pretrained(folder)

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "_write_weights", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, tokenizer, tmp_path / "there" / "out")
    assert list((tmp_path / "there").iterdir()) == []


def test_adapters_are_merged_first(write_folder, tmp_path):
    model, tokenizer = load_pretrained(write_folder()[0])
    adapted = add_adapters(model, LoraConfig(rank=2), seed=0)
    with pytest.raises(ValueError, match="has adapters: merge them"):
        save_pretrained(adapted, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    save_pretrained(merged_model(adapted), tokenizer, tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(write_folder, tmp_path):
    folder, _, _ = write_folder()
    model, tokenizer = load_pretrained(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match="exists and is not empty; give another folder"):
        save_pretrained(model, tokenizer, folder)
    assert sorted(folder.iterdir()) == before
    (tmp_path / "empty").mkdir()
    save_pretrained(model, tokenizer, tmp_path / "empty")
    load_pretrained(tmp_path / "empty")


def test_a_link_stays_and_what_it_names_is_written(write_folder, tmp_path):
    model, tokenizer = load_pretrained(write_folder()[0])
    for there in (True, False):
        target, link = tmp_path / f"target-{there}", tmp_path / f"link-{there}"
        link.symlink_to(target)
        if there:
            target.mkdir()
        save_pretrained(model, tokenizer, link)
        assert link.is_symlink() and (target / "config.json").is_file()


def test_the_working_directory_is_not_replaced(write_folder, tmp_path, monkeypatch):
    model, tokenizer = load_pretrained(write_folder()[0])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for folder in (".", tmp_path / "empty"):
        with pytest.raises(ValueError, match=r"working directory, .* give a new folder inside it"):
            save_pretrained(model, tokenizer, folder)
    save_pretrained(model, tokenizer, "inside")
    load_pretrained("inside")


def test_the_tokenizers_own_end_of_text_stays_the_first(write_folder, tmp_path):
    """Of an instruct model: two tokens end a text, and the smaller id is padding."""
    folder, _, _ = write_folder()
    backend = json.loads((folder / "tokenizer.json").read_text())
    content = {token["id"]: token["content"] for token in backend["added_tokens"]}
    own = {"eos_token": content[1], "pad_token": content[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    model, tokenizer = load_pretrained(folder)
    assert tokenizer.eos_ids == (1, 0) and tokenizer.pad_id == 0
    save_pretrained(model, tokenizer, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert {key: written[key] for key in own} == own
    assert load_pretrained(tmp_path / "out")[1].eos_ids == (1, 0)

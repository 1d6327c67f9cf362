"""Small random checkpoints, written by the tests, and the check that a model holds one."""

import json

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers, trainers

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
CORPUS = ["Who wrote Hamlet in 1601? The answer is Shakespeare, of course. " * 3]
CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
GGUF_NAME = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def train_backend(corpus=CORPUS) -> tokenizers.Tokenizer:
    """A byte-level BPE of some 290 tokens; 0 and 1 are special."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend


def make_tensors(config: dict) -> dict[str, np.ndarray]:
    """Random tensors under their Hugging Face names, [out, in]."""
    width, ff, head_dim = (config[k] for k in ("hidden_size", "intermediate_size", "head_dim"))
    q, kv = (config[f"num_{k}_heads"] * head_dim for k in ("attention", "key_value"))
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    layer_shapes = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (q, width),
        "self_attn.k_proj.weight": (kv, width),
        "self_attn.v_proj.weight": (kv, width),
        "self_attn.o_proj.weight": (width, q),
        "mlp.gate_proj.weight": (ff, width),
        "mlp.up_proj.weight": (ff, width),
        "mlp.down_proj.weight": (width, ff),
    }
    if config["model_type"] == "qwen2":
        layer_shapes |= {f"self_attn.{x}_proj.bias": (n,) for x, n in zip("qkv", (q, kv, kv))}
    if config["model_type"] == "qwen3":
        layer_shapes |= {f"self_attn.{x}_norm.weight": (head_dim,) for x in "qk"}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": s for name, s in layer_shapes.items()}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder, backend, *, tensors=None, files=None, **changes):
    """Writes a Hugging Face folder; returns it with its config and tensors."""
    config = CONFIG | changes
    tensors = make_tensors(config) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(config))
    backend.save(str(folder / "tokenizer.json"))
    for file, names in (files or {"model.safetensors": tensors}).items():
        safetensors.numpy.save_file({n: tensors[n] for n in names}, folder / file)
    return folder, config, tensors


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order 0, E/2, 1, E/2 + 1, ... as Llama files in GGUF have them."""
    head_dim = rows.shape[0] // heads
    order = [h * head_dim + i + half for h in range(heads) for i in range(head_dim // 2)
             for half in (0, head_dim // 2)]  # fmt: skip
    return rows[order]


def gguf_name(name: str) -> str:
    for ours, theirs in GGUF_NAME.items():
        name = name.replace(ours, theirs)
    return name.replace("model.layers", "blk")


def write_gguf(
    path,
    backend,
    *,
    pre="gpt-2",
    tokenizer_model="gpt2",
    quantise=(),
    kind=gguf.GGMLQuantizationType.Q8_0,
    edit=None,
    tensors=None,
    **changes,
):
    """Writes a GGUF file; returns it with the tensors under their Hugging Face names."""
    config = CONFIG | changes
    tensors = make_tensors(config) if tensors is None else tensors
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, backend, tokenizer_model, pre)
    if edit is not None:
        edit(writer)
    for name, array in tensors.items():
        if architecture == "llama" and ".q_proj" in name:
            array = interleaved(array, config["num_attention_heads"])
        if architecture == "llama" and ".k_proj" in name:
            array = interleaved(array, config["num_key_value_heads"])
        if name in quantise:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors


def _add_tokenizer(writer, backend, model: str, pre: str) -> None:
    description = json.loads(backend.to_str())
    vocab = sorted(description["model"]["vocab"], key=description["model"]["vocab"].get)
    special = {token["content"] for token in description["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocab]
    unused = [f"[PAD{i}]" for i in range(len(vocab), CONFIG["vocab_size"])]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab + unused)
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * len(unused))
    writer.add_token_merges([" ".join(merge) for merge in description["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{{ messages }}")


def parameters(model) -> dict[str, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(model))
    return {".".join(path): np.array(variable[...]) for path, variable in state}


def check_values(model, tensors, *, tied=False):
    """Compares single entries one by one, by what an index means in each layout."""
    ours = parameters(model)
    count = sum(x.size for x in ours.values())
    assert count == sum(x.size for x in tensors.values())

    def layer(name, i):
        return ours[f"trunk.layers.{name}"][i]

    heads = {"q": CONFIG["num_attention_heads"], "k": CONFIG["num_key_value_heads"]}
    heads |= {"v": heads["k"]}
    head_dim = CONFIG["head_dim"]
    for i in range(CONFIG["num_hidden_layers"]):
        stored = {
            name.removeprefix(f"model.layers.{i}."): x
            for name, x in tensors.items()
            if name.startswith(f"model.layers.{i}.")
        }
        for x, n in heads.items():
            for h in range(n):
                for e in range(head_dim):
                    row = stored[f"self_attn.{x}_proj.weight"][h * head_dim + e]
                    np.testing.assert_array_equal(layer(f"attention.{x}.kernel", i)[:, h, e], row)
                    if f"self_attn.{x}_proj.bias" in stored:
                        bias = stored[f"self_attn.{x}_proj.bias"][h * head_dim + e]
                        assert layer(f"attention.{x}.bias", i)[h, e] == bias
            if f"self_attn.{x}_norm.weight" in stored:
                scale = layer(f"attention.{x}_norm.scale", i)
                np.testing.assert_array_equal(scale, stored[f"self_attn.{x}_norm.weight"])
        for h in range(heads["q"]):
            for e in range(head_dim):
                column = stored["self_attn.o_proj.weight"][:, h * head_dim + e]
                np.testing.assert_array_equal(layer("attention.o.kernel", i)[h, e], column)
        for name, stored_name in [
            ("attention_norm.scale", "input_layernorm.weight"),
            ("ff_norm.scale", "post_attention_layernorm.weight"),
            ("ff.gate.kernel", "mlp.gate_proj.weight"),
            ("ff.up.kernel", "mlp.up_proj.weight"),
            ("ff.down.kernel", "mlp.down_proj.weight"),
        ]:
            np.testing.assert_array_equal(layer(name, i), stored[stored_name].T)
    embedding = tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(ours["trunk.embed.embedding"], embedding)
    np.testing.assert_array_equal(ours["trunk.norm.scale"], tensors["model.norm.weight"])
    assert ("head.kernel" in ours) is not tied
    if not tied:
        np.testing.assert_array_equal(ours["head.kernel"], tensors["lm_head.weight"].T)

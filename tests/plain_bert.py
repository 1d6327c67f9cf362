"""The forward pass of a BertModel as its paper has it, in NumPy: an oracle."""

import math

import numpy as np


def norm(x, tensors, name):
    """Layer normalisation, Ba et al. 2016, equations 3 and 4."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def bert_hidden(tensors, config, ids, types=0):
    """BertModel of one sequence without padding, in float64: hidden [T, D].

    `types` are those of the tokens, or of all of them.
    """
    tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    dense = lambda x, name: x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]  # noqa: E731
    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + tensors["embeddings.token_type_embeddings.weight"][types]
    x = norm(x, tensors, "embeddings.LayerNorm")
    heads, size = config["num_attention_heads"], x.shape[1] // config["num_attention_heads"]
    gelu = np.vectorize(lambda value: value * 0.5 * (1 + math.erf(value / math.sqrt(2))))
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        q, k, v = (dense(x, f"{at}attention.self.{part}") for part in ("query", "key", "value"))
        attended = np.zeros_like(x)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            weights = np.exp(q[:, own] @ k[:, own].T / math.sqrt(size))
            attended[:, own] = weights / weights.sum(1, keepdims=True) @ v[:, own]
        branch = dense(attended, f"{at}attention.output.dense")
        x = norm(x + branch, tensors, f"{at}attention.output.LayerNorm")
        branch = dense(gelu(dense(x, f"{at}intermediate.dense")), f"{at}output.dense")
        x = norm(x + branch, tensors, f"{at}output.LayerNorm")
    return x

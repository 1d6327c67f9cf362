"""Adapters that are written here, loaded by peft onto the base that is exported here: the same
logits, and the same greedy tokens."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from greedy_answers import greedy_answers

from sr1_jax.models import find_smollm2, load_pretrained, save_pretrained
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.lora import TARGETS, LoraConfig, add_adapters, merged_model
from sr1_jax.models.peft_folder import load_adapters, read_lora_config, save_adapters

peft = pytest.importorskip("peft", reason="needs the extra oracle")
torch = pytest.importorskip("torch", reason="needs the extra oracle")
transformers = pytest.importorskip("transformers", reason="needs the extra oracle")

pytestmark = [
    pytest.mark.slow,
    # Raised inside the oracles.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SHIPPED = Path(__file__).parents[2] / "examples" / "smollm2_agent"
QUESTIONS = [
    "who wrote the novel frankenstein",
    "what is the capital of australia",
    "when did the titanic sink",
    "who painted the ceiling of the sistine chapel",
    "how many strings does a violin have",
    "which planet is the largest of the solar system",
    "In which country was the author of The Little Prince born?",
    "who discovered penicillin",
    "what is the longest river of south america",
    "Are the Alps higher than the Andes?",
]


def with_noise(model, seed, *filters):
    rng = np.random.default_rng(seed)
    state = nnx.state(model, *filters)
    nnx.update(
        model,
        jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), state),
    )
    return model


def theirs(base, tokenizer, adapters, folder):
    """What transformers and peft make of an exported base and a folder of adapters."""
    save_pretrained(base, tokenizer, folder, dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, adapters).eval()


@pytest.mark.parametrize("targets", [("q", "v"), TARGETS], ids=len)
def test_peft_computes_the_same_logits(small_tokenizer, tmp_path, targets):
    tokenizer = small_tokenizer
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=3, heads=4, kv_heads=2, head_dim=8,
        ff_width=48, family="llama",
    )  # fmt: skip
    base = with_noise(Decoder(config, rngs=nnx.Rngs(0)), 1, nnx.Param)
    lora = LoraConfig(rank=3, alpha=12.0, targets=targets)
    model = with_noise(add_adapters(base, lora, seed=2), 3, nnx.LoRAParam)
    save_adapters(model, tmp_path / "adapters", base="base")
    other = theirs(base, tokenizer, tmp_path / "adapters", tmp_path / "base")

    ids = np.random.default_rng(4).integers(0, tokenizer.vocab_size, (2, 11))
    with torch.no_grad():
        expected = other(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model(jnp.asarray(ids)), expected, rtol=2e-4, atol=2e-4)
    assert np.abs(expected - np.asarray(base(jnp.asarray(ids)))).max() > 0.1  # adapters do count


@pytest.mark.skipif(not SHIPPED.exists(), reason="no adapters are shipped")
def test_the_shipped_agent_writes_the_same_greedy_tokens(tmp_path):
    """Ten prompts, up to the first search, by the rollout engine's own programs."""
    base, tokenizer = load_pretrained(find_smollm2())
    other = theirs(base, tokenizer, SHIPPED, tmp_path / "base")
    lora = read_lora_config(SHIPPED, base.config.family)
    model = add_adapters(base, lora, seed=0)
    load_adapters(model, SHIPPED)
    answers = greedy_answers(
        merged_model(model), tokenizer, QUESTIONS, template="agent_chatml", slots=5, tokens=40,
        context=192, bucket=96,
    )  # fmt: skip
    for t in answers:
        # What the environment says after the first segment is not the policy's.
        written = t.ids[t.prompt_length :][: int(np.argmin([*t.mask[t.prompt_length :], 0]))]
        start = torch.tensor([t.ids[: t.prompt_length].tolist()])
        with torch.no_grad():
            out = other.generate(
                input_ids=start, attention_mask=torch.ones_like(start), do_sample=False,
                max_new_tokens=len(written), eos_token_id=list(tokenizer.eos_ids),
                pad_token_id=tokenizer.pad_id,
            )  # fmt: skip
        np.testing.assert_array_equal(out[0, t.prompt_length :].numpy(), written)
        assert len(written) > 4

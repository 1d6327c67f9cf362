"""Exports a trained policy as a Hugging Face folder.

    python -m sr1_jax.export --config=configs/smollm2_qa.py --workdir=runs/qa --output=FOLDER

The policy of the newest checkpoint, or with --base the one training started from. The folder has
safetensors, config, tokenizer and generation config; transformers and vLLM load it. With --adapter
it has the adapters alone, as peft and lora.path load them; they are kept in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from sr1_jax import cli
from sr1_jax.models.export import check_free, save_pretrained
from sr1_jax.models.peft_folder import save_adapters
from sr1_jax.paths import local_path
from sr1_jax.sharding import make_mesh
from sr1_jax.training.policies import trained_policy
from sr1_jax.training.settings import check_paths

_DTYPES = ("bfloat16", "float16", "float32")


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder to write; new, or empty.", flag_values=values)
    flags.DEFINE_bool("base", False, "The policy before training.", flag_values=values)
    flags.DEFINE_bool("adapter", False, "Only the adapters, a folder of peft.", flag_values=values)
    flags.DEFINE_enum("dtype", "bfloat16", _DTYPES, "Of the weights.", flag_values=values)
    cli.parse(values, argv, required=("config", "workdir", "output"), usage=__doc__)
    config = values.config
    output = local_path(values.output, "--output")
    workdir = local_path(values.workdir, "--workdir")
    check_free(output)  # before anything is loaded
    check_paths(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    policy, tokenizer, what = trained_policy(
        config, workdir, mesh, base=values.base, merge=not values.adapter
    )
    if values.adapter:
        save_adapters(policy, output, base=config.base.path)
        print(f"Wrote the adapters ({what}) to {output}.")
    else:
        save_pretrained(policy, tokenizer, output, dtype=values.dtype)
        print(f"Wrote the policy ({what}) to {output}.")


if __name__ == "__main__":
    cli.run(main)

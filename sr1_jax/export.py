"""Exports a trained policy as a Hugging Face folder.

    python -m sr1_jax.export --config=configs/smollm2_qa.py --workdir=runs/qa --output=FOLDER

The policy of the newest checkpoint, or of --step; with --base the one that training starts from.
The folder has safetensors, config, tokenizer and generation config; transformers and vLLM load it.
With --adapter it has the adapters alone, as peft and lora.path load them; they are kept in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from sr1_jax import cli
from sr1_jax.evaluation.progress import working
from sr1_jax.models.export import check_free, save_pretrained
from sr1_jax.models.peft_folder import save_adapters
from sr1_jax.paths import output_path
from sr1_jax.sharding import make_mesh
from sr1_jax.terminal import one_line
from sr1_jax.training.checks import check_paths
from sr1_jax.training.policies import trained_policy
from sr1_jax.training.saved_run import find_run, step_flag
from sr1_jax.training.settings import RUN, unknown_setting
from sr1_jax.workdirs import workdir_of_run

_DTYPES = ("bfloat16", "float16", "float32")


def main(argv: Sequence[str]) -> None:
    values = flags.FlagValues()
    cli.config_flag(values, RUN, unknown_setting)
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "Folder of the run.", **define)
    flags.DEFINE_string("output", None, "Folder to write; new, or empty.", **define)
    flags.DEFINE_bool("base", False, "The policy that training starts from.", **define)
    step_flag(values)
    flags.DEFINE_bool("adapter", False, "Only the adapters, a folder of peft.", **define)
    flags.DEFINE_enum("dtype", "bfloat16", _DTYPES, "Of the weights.", **define)
    cli.parse(values, argv, required=("config", "workdir", "output"), usage=__doc__)
    config = values.config
    with (
        output_path(values.output, "--output") as output,
        workdir_of_run(values.workdir, "export") as workdir,
    ):
        check_free(output)  # before anything is loaded
        check_paths(config)
        _export(values, workdir, output)


def _export(values: flags.FlagValues, workdir: Path, output: Path) -> None:
    config = values.config
    run = find_run(config, workdir, base=values.base, step=values.step)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    with working("loading the policy"):
        policy, tokenizer, what = trained_policy(
            config, workdir, mesh, base=values.base, step=run.step, merge=not values.adapter
        )
    with working("writing the weights"):
        if values.adapter:
            save_adapters(policy, output, base=config.base.path)
        else:
            save_pretrained(policy, tokenizer, output, dtype=values.dtype)
    kind = "adapters" if values.adapter else "policy"
    print(one_line(f"Wrote the {kind} ({what}) to {values.output}."))


if __name__ == "__main__":
    cli.run(main)

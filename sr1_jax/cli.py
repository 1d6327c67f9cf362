"""What the entry points share: flags, and errors as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags


def config_flag(values: flags.FlagValues) -> None:
    """Defines --config=FILE[:argument] with --config.key=value overrides."""
    config_flags.DEFINE_config_file(
        "config", None, "File of settings, e.g. configs/demo.py.", flag_values=values
    )


def parse(
    values: flags.FlagValues,
    argv: Sequence[str],
    required: Sequence[str],
    *,
    positional: bool = False,
) -> list[str]:
    """Parses `argv`; returns what is no flag, which must be nothing unless `positional`.

    Raises:
        ValueError: an unknown flag or key, a value of the wrong type, a required flag missing, an
            argument that is no flag.
    """
    try:
        rest = values(list(argv), known_only=False)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{error}") from error
    for name in required:
        if not values[name].value:
            raise ValueError(f"--{name} is missing.")
    if rest and not positional:
        raise ValueError(f"unexpected argument {rest[0]!r}; flags are --name=value.")
    return rest


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry point; bad input becomes one line on stderr and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        main(sys.argv)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if os.environ.get("SR1_JAX_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

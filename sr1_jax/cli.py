"""What the entry points share: flags, and errors as one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from sr1_jax import cluster


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
    usage: str,
    positional: bool = False,
) -> list[str]:
    """Parses `argv`; returns what is no flag, which must be nothing unless `positional`.

    Asked for help (--help, -help, -h) it prints `usage` and the flags, and exits with code 0.

    Raises:
        ValueError: an unknown flag or key, a value of the wrong type, a required flag missing, an
            argument that is no flag.
    """
    if wants_help(argv):
        print(f"{usage}\n{values.get_help()}")
        sys.exit(0)
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


def wants_help(argv: Sequence[str]) -> bool:
    return not {"--help", "-help", "-h"}.isdisjoint(argv[1:])


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry point; bad input becomes one line on stderr and exit code 2.

    In a cluster any error does, and ends the other processes as well.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        main(sys.argv)
    except KeyboardInterrupt:
        if cluster.joined():
            cluster.fail("interrupted")
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        expected = isinstance(error, (ValueError, OSError, FloatingPointError, RuntimeError))
        message = " ".join(str(error).split())
        if cluster.joined():
            if not expected or os.environ.get("SR1_JAX_TRACEBACK"):
                traceback.print_exc()
            cluster.fail(message if expected else repr(error))
        if not expected or os.environ.get("SR1_JAX_TRACEBACK"):
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

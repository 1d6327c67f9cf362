"""Lists the commands: python -m sr1_jax."""

from __future__ import annotations

import ast
import pkgutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from sr1_jax import cli

_FOLDER = Path(__file__).parent


def main(argv: Sequence[str]) -> None:
    """Prints what there is to run.

    Raises:
        ValueError: something was to be run.
    """
    if len(argv) > 1 and not cli.wants_help(argv):
        known = dict(commands())
        name = argv[1].removeprefix("sr1_jax.")
        if name in known:
            raise ValueError(f"commands are modules: python -m sr1_jax.{name}, with a dot.")
        raise ValueError(f"there is no command {name!r}; there are {', '.join(known)}.")
    print("Search-R1 in JAX: trains language models to reason and search.\n")
    known = list(commands())
    width = max(len(name) for name, _ in known)
    for name, summary in known:
        head = f"  python -m sr1_jax.{name:<{width}}  "
        print(textwrap.fill(summary, 80, initial_indent=head, subsequent_indent=" " * len(head)))
    print("\nEach tells more with --help.")


def commands() -> Iterator[tuple[str, str]]:
    """Every module that is a program, with the first line of its docstring."""
    for module in pkgutil.iter_modules([str(_FOLDER)]):
        path = _FOLDER / f"{module.name}.py"
        if module.name.startswith("_") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        # Read, not imported: that would take seconds.
        if '\nif __name__ == "__main__":' in text:
            yield module.name, (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    cli.run(main)

"""What users add from outside the package, named by import path: module:function."""

from __future__ import annotations

import contextlib
import importlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def is_import_path(name: str) -> bool:
    """Whether a name is an import path rather than one of ours."""
    return ":" in name


def load(path: str, key: str) -> Any:
    """The callable that an import path names.

    Args:
        path: "module:function"; the module is found as by `import`, in the current folder too.
        key: of the setting, for messages.

    Raises:
        ValueError: the path has no such form, there is no such module or function in it, or it is
            nothing that can be called.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name or not all(map(str.isidentifier, module_name.split("."))):
        raise ValueError(f"{key}={path!r} is no import path; write module:function.")
    with blamed(f"{key}={path!r}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that is there may itself import one that is not.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ValueError(
                f"there is no module {module_name}. Start Python where it can be imported, or add "
                "its folder to PYTHONPATH."
            ) from error
    found = getattr(module, name, None)
    if not callable(found):
        have = "is not callable" if hasattr(module, name) else "is not there"
        raise ValueError(f"{key}={path!r}: {name} {have} in {module.__file__}.")
    return found


@contextlib.contextmanager
def blamed(setting: str) -> Iterator[None]:
    """Says of an error in a user's own code which setting named it, and on which line it came.

    Args:
        setting: as the user wrote it, key=value, and what was done with it.

    Raises:
        ValueError: in the place of any other error.
    """
    try:
        yield
    except Exception as error:
        # What a ValueError says is written for people.
        plain = isinstance(error, ValueError) and str(error)
        what = str(error) if plain else f"{type(error).__name__}: {error}"
        raise ValueError(f"{setting}: {_user_line(error)}{what}") from error


def _user_line(error: Exception) -> str:
    """file:line of the user's own that the error passed last, and a colon; or nothing."""
    if isinstance(error, SyntaxError) and error.filename and is_users(Path(error.filename)):
        return f"{shown(error.filename)}:{error.lineno}: "
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_file() and is_users(file):
            where = f"{shown(str(file))}:{line}: "
    return where


def is_users(path: Path) -> bool:
    """Whether a path belongs neither to Python, nor to a library, nor to this package."""
    path = path.resolve()
    library = path.is_relative_to(Path(os.__file__).resolve().parent)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not (library or installed or path.is_relative_to(_PACKAGE))


def shown(file: str) -> str:
    """A path relative to the current folder, if it is below it."""
    with contextlib.suppress(ValueError):
        return str(Path(file).resolve().relative_to(Path.cwd()))
    return file

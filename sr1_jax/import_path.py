"""What users add from outside the package, named by import path: module:function."""

from __future__ import annotations

import importlib
from typing import Any


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
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there may itself import one that is not.
        missing = "" if error.name == module_name else f" ({error})"
        raise ValueError(
            f"{key}={path!r}: there is no module {module_name}{missing}. Start Python where it can "
            "be imported, or add its folder to PYTHONPATH."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        have = "is not callable" if hasattr(module, name) else "is not there"
        raise ValueError(f"{key}={path!r}: {name} {have} in {module.__file__}.")
    return found

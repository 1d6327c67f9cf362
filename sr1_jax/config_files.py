"""Files of settings, and settings on the command line: read with errors that a person can use.

A file is Python and defines get_config(), or get_config(argument) for --config=FILE:argument, which
returns the settings of a run. On the command line --config.KEY=VALUE overrides one.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import re
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from sr1_jax.import_path import is_users, shown
from sr1_jax.settings import Section

# Says of a key that does not exist what to write instead.
Unknown = Callable[[str], str]

_CONFIG_DICT = sys.modules[ml_collections.ConfigDict.__module__].__file__
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a tuple, such as (1, 2)",
    str: "text",
}


def load_config(text: str, unknown: Unknown) -> ml_collections.ConfigDict:
    """What get_config of a file returns.

    The file may import those beside it, as `from configs import demo`, from wherever Python was
    started.

    Args:
        text: FILE.py or FILE.py:argument.
        unknown: says of a key that does not exist, but that the file uses, what to write instead.

    Raises:
        ValueError: there is no such file, it raises an error, or it does not return settings. Names
            the file and, where there is one, the line.
    """
    found = re.fullmatch(r"(.+?\.py)(?::(.*))?", text, re.DOTALL)
    if not found or not Path(found[1]).is_file():
        path = found[1] if found else text
        what = "no Python file (.py)" if Path(path).is_file() else "no file"
        raise ValueError(f"--config={text}: {path} is {what}; give one such as configs/demo.py.")
    path, argument = Path(found[1]), found[2]
    try:
        with _importable(path.resolve()):
            get_config = _module(path).get_config
            if argument is not None and not inspect.signature(get_config).parameters:
                raise ValueError(f"get_config() takes no argument, but :{argument} is given.")
            config = get_config() if argument is None else get_config(argument)
        if not isinstance(config, ml_collections.ConfigDict):
            kind = type(config).__name__
            raise ValueError(f"get_config() must return the settings, but returned a {kind}.")
    except Exception as error:
        raise ValueError(_message(error, path, unknown)) from error
    return config


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Takes --config.KEY=VALUE out of a command line.

    Returns:
        The other arguments, and (KEY, VALUE) in order. VALUE is None for --config.KEY alone, which
        turns a setting on; --noconfig.KEY turns it off.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str | None]] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        if argument == "--":
            return [*rest, argument, *left], overrides
        found = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if not found:
            rest.append(argument)
            continue
        off, key, value = found.groups()
        if off:
            value = "false" if value is None else value
        elif value is None and left and not re.match(r"--?[a-zA-Z]", left[0]):
            value = left.pop(0)
        overrides.append((key, value))
    return rest, overrides


def override(
    config: ml_collections.ConfigDict,
    key: str,
    text: str | None,
    *,
    settings: Section,
    unknown: Unknown,
) -> None:
    """Sets one setting to a value of the command line.

    Args:
        config: is changed.
        key: dotted.
        text: its value; None, where no value was given, turns a boolean on.
        settings: says which sections are open to keys that are not declared. Values of such keys
            are read as Python literals, and as text where they are none.
        unknown: says of a key that does not exist what to write instead.

    Raises:
        ValueError: there is no such key, or the value has another type; names key and value.
    """
    *sections, name = key.split(".")
    node, declared, is_open = config, settings, False
    for section in sections:
        part = declared.parts.get(section) if declared else None
        is_open = part.open if isinstance(part, Section) else is_open and part is None
        if section not in node and is_open:
            with node.unlocked():
                node[section] = ml_collections.ConfigDict()
        if section not in node or not isinstance(node[section], ml_collections.ConfigDict):
            raise ValueError(f"--config.{key}: {unknown(key)}")
        node, declared = node[section], part if isinstance(part, Section) else None
    if name not in node and not is_open:
        raise ValueError(f"--config.{key}: {unknown(key)}")
    if name in node and isinstance(node[name], ml_collections.ConfigDict):
        raise ValueError(f"--config.{key}: {key} is a section; set its keys, as {key}.KEY=VALUE.")
    value = _parse(text, object if is_open else node.get_type(name), f"--config.{key}")
    with node.unlocked() if is_open else contextlib.nullcontext():
        if is_open and name in node:
            del node[name]  # set by the file, perhaps to a value of another type
        node[name] = value


def _parse(text: str | None, kind: type, flag: str) -> Any:
    """The value of a flag, converted to the type of its setting."""
    if text is None:
        if kind not in (bool, object):
            raise ValueError(f"{flag} has no value; write {flag}=VALUE.")
        return True
    if kind is str:
        return text
    literal = _literal(text)
    if kind is object:
        return literal
    if literal is None or text == "none":
        return None
    if kind is tuple:
        if literal == text and text.lstrip().startswith(("(", "[")):
            raise ValueError(f"{flag}={text}: this is no tuple that Python can read.")
        if literal == text:  # words without quotation marks
            return tuple(part.strip() for part in text.split(","))
        return tuple(literal) if isinstance(literal, (tuple, list)) else (literal,)
    if kind is bool and literal in (0, 1):
        return bool(literal)
    if kind is int and isinstance(literal, int) and not isinstance(literal, bool):
        return literal
    if kind is float:
        with contextlib.suppress(ValueError):
            return float(text)
    key = flag.removeprefix("--config.")
    raise ValueError(f"{flag}={text}: {key} takes {_expected(kind)}, not {text!r}.")


def _literal(text: str) -> Any:
    """The value of a Python literal, or of true and false as flags spell them; else the text."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _expected(kind: type) -> str:
    return _EXPECTED.get(kind, f"a {kind.__name__}")


@contextlib.contextmanager
def _importable(path: Path) -> Iterator[None]:
    """Lets the file at `path` import its neighbours by the name of their folder."""
    folder = path.parent
    while (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    there = [Path(place) for place in getattr(sys.modules.get(folder.name), "__path__", ())]
    if there and folder not in there and all(map(is_users, there)):
        # A folder of the same name elsewhere, of which something was imported before.
        for name in [name for name in sys.modules if name.split(".")[0] == folder.name]:
            del sys.modules[name]
    sys.path.insert(0, str(folder.parent))
    try:
        yield
    finally:
        sys.path.remove(str(folder.parent))


def _module(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError("there is no function get_config in it.")
    return module


def _message(error: Exception, path: Path, unknown: Unknown) -> str:
    """What went wrong in a file of settings, and on which of the user's own lines."""
    if isinstance(error, SyntaxError) and Path(error.filename or "").is_file():
        return f"{shown(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    where = str(path)
    configs: list[ml_collections.ConfigDict] = []  # that the user's functions hold
    held: dict[str, Any] = {}  # variables of the ConfigDict's method that raised the error
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_file() and is_users(file):
            where, held = f"{shown(str(file))}:{line}", {}
            values = frame.f_locals.values()
            configs += [v for v in values if isinstance(v, ml_collections.ConfigDict)]
        elif str(file) == _CONFIG_DICT:
            held = frame.f_locals
    what = _wrong_setting(held, configs, unknown)
    if what is None:
        # A ValueError's text is written for people.
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return f"{where}: {what}"


def _wrong_setting(
    held: dict[str, Any], configs: Sequence[ml_collections.ConfigDict], unknown: Unknown
) -> str | None:
    """What is wrong with a setting, told from the variables of the method that refused it."""
    node, name = held.get("self"), held.get("key", held.get("attribute"))
    if not isinstance(node, ml_collections.ConfigDict) or not isinstance(name, str):
        return None
    prefixes = [prefix for config in configs for prefix in _prefixes(config, node)]
    key = max(prefixes, key=len, default="") + name
    if name not in node:
        return unknown(key)
    kind, value = node.get_type(name), held.get("value")
    if kind is ml_collections.ConfigDict:
        return f"{key} is a section; set its keys, as {key}.KEY = …, not {key} = {value!r}."
    return f"{key} takes {_expected(kind)}, not {value!r}."


def _prefixes(config: ml_collections.ConfigDict, node: Any, where: str = "") -> Iterator[str]:
    """What dotted keys of the section `node` begin with; nothing if it is not in `config`."""
    if config is node:
        yield where
    for name, inner in config.items():
        if isinstance(inner, ml_collections.ConfigDict):
            yield from _prefixes(inner, node, f"{where}{name}.")

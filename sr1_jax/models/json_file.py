"""JSON files of others: every value by its key and type, with errors that name the file and key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_REQUIRED = object()
_MAX_INTEGER = 2**31 - 1  # no size of a model is near it


class JsonObject:
    """An object of a JSON file.

    Args:
        file: it was read from, for messages.
        values: by key.
        where: its own key and a dot, if it is part of another object.
    """

    def __init__(self, file: Path, values: dict[str, Any], where: str = ""):
        self.file = file
        self.values = values
        self._where = where

    @property
    def name(self) -> str:
        """The file, and the key of this object in it."""
        return f"{self.file}: {self._where.removesuffix('.')}" if self._where else str(self.file)

    @classmethod
    def read(cls, file: Path, *, optional: bool = False) -> JsonObject:
        """The object that a file holds; an empty one if the file is optional and not there.

        Raises:
            ValueError: the file is missing, no JSON, or holds no object.
        """
        if not file.is_file():
            if optional:
                return cls(file, {})
            raise ValueError(f"{file}: there is no such file.")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: not valid JSON ({error}).") from error
        if not isinstance(values, dict):
            raise ValueError(f"{file}: must hold a JSON object, not a {type(values).__name__}.")
        return cls(file, values)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def error(self, key: str, must: str) -> ValueError:
        """That the value of a key `must` be something else."""
        try:
            value = json.dumps(self.values.get(key))
        except ValueError:
            value = repr(self.values.get(key))
        value = value if len(value) <= 80 else value[:77] + "..."
        return ValueError(f"{self.file}: {self._where}{key}={value} must {must}.")

    def get(self, key: str, default: Any = None) -> Any:
        """A value of any type."""
        return self.values.get(key, default)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is not _REQUIRED:
            return default
        if key not in self.values:
            raise ValueError(f"{self.file}: the key '{self._where}{key}' is missing.")
        return None

    def integer(self, key: str, default: Any = _REQUIRED) -> int:
        """A size; null stands for the default."""
        value = self._value(key, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 1 <= value <= _MAX_INTEGER:
            raise self.error(key, "be a positive integer")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive finite number."""
        value = self.values[key] if key in self else self._value(key, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            raise self.error(key, "be a positive number")
        return float(value)

    def boolean(self, key: str, default: Any = _REQUIRED) -> bool:
        """true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "be true or false")
        return value

    def string(self, key: str, default: Any = _REQUIRED) -> Any:
        """A text; null stands for the default."""
        value = self._value(key, default)
        if not isinstance(value, str) and value is not default:
            raise self.error(key, "be a string")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of texts."""
        value = self._value(key, _REQUIRED)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.error(key, "be a list of strings")
        return value

    def object(self, key: str, default: Any = _REQUIRED) -> JsonObject:
        """An object in this one; null stands for the default."""
        value = self._value(key, default)
        if not isinstance(value, dict):
            raise self.error(key, "be a JSON object")
        return JsonObject(self.file, value, f"{self._where}{key}.")

    def token_ids(self, key: str) -> list[int]:
        """Ids of tokens: one, several or none; some files write -1 for none."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
            raise self.error(key, "be a token id or a list of them")
        return [each for each in ids if each >= 0]

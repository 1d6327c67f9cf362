"""Trajectories as plain data for JSON lines, and back, exactly.

Arrays keep their bits, texts whatever they hold. What a tool left as the record of a call is kept
where it is made of plain values and of the tuples of this package; the record of a user's own tool
may be anything, and comes back as None.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sr1_jax.environment.trajectory import Call, Trajectory

_PACKAGE = __name__.partition(".")[0]


def to_plain(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as data that JSON can hold."""
    fields = {f.name: getattr(trajectory, f.name) for f in dataclasses.fields(trajectory)}
    fields["calls"] = [_without_foreign_record(call) for call in fields["calls"]]
    return {name: _plain(value) for name, value in fields.items()}


def from_plain(data: Mapping[str, Any]) -> Trajectory:
    """What `to_plain` was given.

    Raises:
        ValueError: it is something else.
    """
    try:
        return Trajectory(**{name: _restored(value) for name, value in data.items()})
    except (TypeError, KeyError, AttributeError, ImportError) as error:
        raise ValueError(f"no trajectory ({error})") from error


def _without_foreign_record(call: Call) -> Call:
    try:
        _plain(call.record)
    except TypeError:
        return call._replace(record=None)
    return call


def _plain(value: Any) -> Any:
    """Data for JSON: whatever is no plain value or list is an object that says its kind.

    Raises:
        TypeError: of a kind that is not known.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {"kind": "array", "of": value.dtype.str, "shape": list(value.shape), "data": data}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        pairs = [[_plain(key), _plain(one)] for key, one in value.items()]
        return {"kind": "mapping", "data": pairs}
    if type(value) is tuple:
        return {"kind": "tuple", "data": [_plain(one) for one in value]}
    if type(value).__module__.partition(".")[0] == _PACKAGE:
        if hasattr(value, "_fields"):
            names = value._fields
        else:
            names = [field.name for field in dataclasses.fields(value)]
        return {
            "kind": "object",
            "of": f"{type(value).__module__}:{type(value).__qualname__}",
            "data": {name: _plain(getattr(value, name)) for name in names},
        }
    raise TypeError(f"a {type(value).__name__}")


def _restored(data: Any) -> Any:
    if isinstance(data, list):
        return [_restored(one) for one in data]
    if not isinstance(data, dict):
        return data
    content = data["data"]
    if data["kind"] == "array":
        values = np.frombuffer(base64.b64decode(content), np.dtype(data["of"]))
        return values.reshape(data["shape"]).copy()
    if data["kind"] == "mapping":
        return {_restored(key): _restored(one) for key, one in content}
    if data["kind"] == "tuple":
        return tuple(_restored(one) for one in content)
    made = _class_of(data["of"])
    return made(**{name: _restored(one) for name, one in content.items()})


def _class_of(path: str) -> type:
    """A tuple or dataclass of this package; nothing else is made from a file.

    Raises:
        TypeError: it is something else.
    """
    module, _, name = path.partition(":")
    if module.partition(".")[0] == _PACKAGE:
        found = getattr(importlib.import_module(module), name)
        own = isinstance(found, type) and found.__module__ == module
        if own and (hasattr(found, "_fields") or dataclasses.is_dataclass(found)):
            return found
    raise TypeError(f"{path} is no data of {_PACKAGE}")

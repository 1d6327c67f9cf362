"""Whether what is found in a workdir was made with the settings that a run has now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_json_values(value: Any) -> Any:
    """Settings as they come back from a JSON file."""
    if isinstance(value, Mapping):
        return {key: as_json_values(v) for key, v in value.items()}
    return [as_json_values(v) for v in value] if isinstance(value, (list, tuple)) else value


def check_same_settings(
    saved: dict[str, Any], now: dict[str, Any], where: str = "", what: str = "a checkpoint"
) -> None:
    """Raises ValueError for the first setting that differs; it names key and values."""
    for key in sorted(saved.keys() | now.keys()):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            check_same_settings(old, new, f"{where}{key}.", what)
        elif old != new:
            raise ValueError(
                f"This workdir holds {what} made with {where}{key}={old!r}, now it is "
                f"{new!r}: use the old setting or another --workdir."
            )

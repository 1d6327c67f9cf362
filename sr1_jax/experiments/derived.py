"""A run's settings as another file's, with some changed: files that a person can read and run."""

from __future__ import annotations

import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from sr1_jax.config_files import load_config, override
from sr1_jax.training.settings import RUN, unknown_setting

Overrides = Sequence[tuple[str, str | None]]

_FILE = '''"""{title}"""

from sr1_jax.experiments.derived import derived_config


def get_config():
    return derived_config(
        {config!r},
        overrides={overrides},
        values={values},
    )
'''


def derived_config(
    config: str, overrides: Overrides, values: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """The settings of a file, changed.

    Args:
        config: FILE.py or FILE.py:argument.
        overrides: (dotted key, text) as the command line gives them.
        values: by dotted key; they come last.

    Raises:
        ValueError: as `load_config` and `override`, or an unknown key.
    """
    found = load_config(config, unknown_setting)
    for key, text in overrides:
        override(found, key, text, settings=RUN, unknown=unknown_setting)
    for key, value in values.items():
        *sections, name = key.split(".")
        node = found
        for section in sections:
            node = node[section]
        if name not in node:
            raise ValueError(unknown_setting(key))
        node[name] = value
    return found


def derived_file(title: str, config: str, overrides: Overrides, values: Mapping[str, Any]) -> str:
    """The text of a file of settings that `derived_config` makes.

    Args:
        title: says what the run is.
        config, overrides, values: as of `derived_config`; the file's path becomes absolute.
    """
    path, argument = split_argument(config)

    def shown(value: Any) -> str:
        return pprint.pformat(value, indent=1, width=80, sort_dicts=False).replace(
            "\n", "\n" + " " * 12
        )

    return _FILE.format(
        title=title,
        config=f"{path.resolve()}{argument}",
        overrides=shown(list(overrides)),
        values=shown(dict(values)),
    )


def split_argument(config: str) -> tuple[Path, str]:
    """FILE.py:argument as path and ":argument"; the second is "" where there is none."""
    path, dot, argument = config.partition(".py:")
    return (Path(path + ".py"), f":{argument}") if dot else (Path(config), "")

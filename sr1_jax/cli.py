"""What the entry points share: flags, help, settings, and errors as one line."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from sr1_jax import cluster
from sr1_jax.config_files import load_config, override, split_overrides
from sr1_jax.exit_codes import ExitCode, code_of, is_of_devices
from sr1_jax.settings import Section
from sr1_jax.terminal import one_line, printable

_KEY_COLUMNS = 34


class ToldToEnd(BaseException):
    """SIGTERM came where nothing is under way that has to be finished first.

    No `Exception`: whoever handles those, to try again for one, should not take it for one.
    """

    exit_code = ExitCode.TERMINATED


class _ConfigFlag(flags.Flag):
    """The flag --config: the name of a file and, once that is read, the settings in it.

    Attributes:
        file: its name, once it is read.
        overrides: (key, text) that were applied to its settings.
    """

    def __init__(self, settings: Section, unknown: Callable[[str], str]):
        super().__init__(
            flags.ArgumentParser(),
            flags.ArgumentSerializer(),
            "config",
            None,
            "File of settings, e.g. configs/demo.py.",
        )
        self.settings, self.unknown = settings, unknown
        self.file, self.overrides = "", []

    def read(self, overrides: Sequence[tuple[str, str | None]]) -> None:
        """Reads the file, and applies the overrides to its settings."""
        self.file, self.overrides = self.value, list(overrides)
        config = load_config(self.value, self.unknown)
        for key, value in overrides:
            override(config, key, value, settings=self.settings, unknown=self.unknown)
        self.value = config


def config_flag(values: flags.FlagValues, settings: Section, unknown: Callable[[str], str]) -> None:
    """Defines --config=FILE[:argument] with --config.key=value overrides.

    Args:
        values: where the flag is defined.
        settings: all there are, for help and overrides.
        unknown: says of a key that does not exist what to write instead.
    """
    flags.DEFINE_flag(_ConfigFlag(settings, unknown), values)


def parse(
    values: flags.FlagValues,
    argv: Sequence[str],
    required: Sequence[str],
    *,
    usage: str,
    positional: bool = False,
) -> list[str]:
    """Parses `argv` and returns the arguments that are no flags, allowed only if `positional`.

    With a `config_flag`, `values.config` then holds the settings of the file with all overrides.
    Asked for help (--help, -help, -h), it prints `usage`, the flags and the settings, and exits
    with code 0.

    Raises:
        ValueError: an unknown flag or key, a value of the wrong type, a required flag missing, an
            argument that is no flag; or as `load_config`.
    """
    config = _config_flag_of(values)
    if wants_help(argv):
        print(help_text(values, usage))
        sys.exit(0)
    argv, overrides = split_overrides(argv) if config is not None else (list(argv), [])
    try:
        rest = values(argv, known_only=False)[1:]
    except (flags.Error, OSError) as error:
        raise ValueError(f"{error}") from error
    for name in required:
        if not values[name].value:
            raise ValueError(f"--{name} is missing.")
    if rest and not positional:
        raise ValueError(f"unexpected argument {rest[0]!r}; flags are --name=value.")
    if config is not None and config.value:
        config.read(overrides)
    return rest


def _config_flag_of(values: flags.FlagValues) -> _ConfigFlag | None:
    flags_here = (values[name] for name in values)
    return next((flag for flag in flags_here if isinstance(flag, _ConfigFlag)), None)


def config_given(values: flags.FlagValues) -> tuple[str, list[tuple[str, str | None]]]:
    """The file of a `config_flag` that was parsed, and the overrides, for who hands them on."""
    flag = _config_flag_of(values)
    return flag.file, flag.overrides


def wants_help(argv: Sequence[str]) -> bool:
    return not {"--help", "-help", "-h"}.isdisjoint(argv[1:])


def help_text(values: flags.FlagValues, usage: str) -> str:
    """Usage, flags, and with a `config_flag` all settings; as wide as the terminal, at most 100."""
    width = min(100, shutil.get_terminal_size().columns)
    parts = [_rewrapped(usage, width), "", "Flags", *_flag_lines(values, width)]
    config = _config_flag_of(values)
    if config is not None:
        parts += ["", *settings_lines(config.settings, width)]
    return "\n".join(parts)


def _rewrapped(text: str, width: int) -> str:
    """Fits a docstring to a terminal; indented paragraphs, such as commands, stay as they are."""
    paragraphs = text.strip().split("\n\n")
    filled = (p if p.startswith(" ") else textwrap.fill(p, width) for p in paragraphs)
    return "\n\n".join(filled)


def _flag_lines(values: flags.FlagValues, width: int) -> Iterator[str]:
    for name in values:
        flag = values[name]
        if flag.name != name or not flag.help:
            continue  # a short name, or one of absl's own
        text = f"--{name}" if flag.default in (None, "", []) else f"--{name}={flag.default_as_str}"
        yield from _entry(text.replace("'", ""), flag.help, width)


def settings_lines(settings: Section, width: int) -> Iterator[str]:
    """Every setting with its default and meaning, by section."""
    yield "Settings and their defaults; --config.SECTION.KEY=VALUE sets one"
    yield "(*: may change when a run is resumed; …: takes keys of your own)"
    yield ""
    yield from _section_lines(settings, "", width, free=False)


def _section_lines(section: Section, where: str, width: int, *, free: bool) -> Iterator[str]:
    free = free or section.free_on_resume
    inner = {name: part for name, part in section.parts.items() if isinstance(part, Section)}
    own = {name: part for name, part in section.parts.items() if name not in inner}
    if where and (own or section.open):
        yield ""
        yield where.removesuffix(".") + (" …" if section.open else "")
    for name, setting in own.items():
        star = "*" if free or setting.free_on_resume else ""
        yield from _entry(f"{name}={setting.default!r}{star}", setting.meaning, width)
    for name, part in inner.items():
        yield from _section_lines(part, f"{where}{name}.", width, free=free)


def _entry(head: str, meaning: str, width: int) -> Iterator[str]:
    """`head`, and `meaning` in a column of its own; below it where the head is too long."""
    lines = textwrap.wrap(meaning, max(20, width - _KEY_COLUMNS)) or [""]
    *above, head = textwrap.wrap(head, width - 2, subsequent_indent="  ")
    for part in above:
        yield f"  {part}"
    if len(head) + 4 > _KEY_COLUMNS:
        yield f"  {head}"
        head = ""
    yield f"  {head:<{_KEY_COLUMNS - 2}}{lines[0]}"
    for line in lines[1:]:
        yield " " * _KEY_COLUMNS + line


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an entry point; an error becomes one line on stderr and a code of `exit_codes`.

    An error that nobody expected, or one of the devices, leaves its traceback as well; with
    SR1_JAX_TRACEBACK set every error does. In a cluster an error ends the other processes too, with
    the same code. SIGTERM ends a program where it is, as an error would, so that it leaves nothing
    half done; who has something to finish first takes the signal over meanwhile.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if threading.current_thread() is threading.main_thread():  # others may set no handlers
        signal.signal(signal.SIGTERM, _end)
    try:
        main(sys.argv)
    except (KeyboardInterrupt, ToldToEnd) as error:
        message = str(error) or "interrupted"
        if cluster.joined():
            cluster.fail(message, code_of(error))
        print(message, file=sys.stderr)
        sys.exit(code_of(error))
    except Exception as error:
        code = code_of(error)
        expected = isinstance(error, (ValueError, OSError, FloatingPointError, RuntimeError))
        message = one_line(str(error) if expected else repr(error)) or repr(error)
        shown = code == ExitCode.DEFECT or is_of_devices(error)
        if shown or os.environ.get("SR1_JAX_TRACEBACK"):
            _print_traceback()
        if cluster.joined():
            cluster.fail(message, code)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(code)


def _end(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and the end takes its time
    raise ToldToEnd("Told to end (SIGTERM). Start again to go on.")


def notice(text: str) -> None:
    """Prints to stderr what is worth knowing but no error."""
    print(one_line(text), file=sys.stderr, flush=True)


def _print_traceback() -> None:
    print(printable(traceback.format_exc()), end="", file=sys.stderr)

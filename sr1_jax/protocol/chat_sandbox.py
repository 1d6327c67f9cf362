"""Renders a model's chat template, a program that came with its weights, within limits.

Jinja's sandbox keeps a template from the rest of the process, but not from looping for ever or
filling the memory, and a thread that does either cannot be ended. So each is rendered by a process
of its own, which imports nothing of this package and is killed when its time is up. It is
started anew, not forked: JAX's threads would not survive a fork.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

SECONDS = 5  # of processor time; ordinary templates take a few hundredths
WALL_SECONDS = 60  # also on a busy machine
MEMORY_BYTES = 1 << 29
MAX_CHARACTERS = 1 << 20  # of a template, and of what it gives

_IMPORTED = (
    "import runpy, sys; sys.path[:] = {path!r}; runpy.run_path({file!r}, run_name='__main__')"
)


@functools.lru_cache(maxsize=64)
def render_chat(template: str, message: str, bos_token: str, eos_token: str) -> str:
    """The template with one message of a user, and the answer being next.

    Args:
        template: Jinja source.
        message: what the user says.
        bos_token, eos_token: first and last tokens of the tokenizer, which templates may name.

    Raises:
        ValueError: the template is wrong, refuses the message, or exceeds a limit.
    """
    if len(template) > MAX_CHARACTERS:
        raise ValueError(
            f"The model's chat template has {len(template)} characters; at most {MAX_CHARACTERS} "
            "are read."
        )
    request = {
        "seconds": SECONDS,
        "template": template,
        "fields": {
            "messages": [{"role": "user", "content": message}],
            "add_generation_prompt": True,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "tools": None,
        },
    }
    start = _IMPORTED.format(path=sys.path, file=__file__)
    try:
        child = subprocess.run(
            [sys.executable, "-c", start],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"The model's chat template was not rendered within {WALL_SECONDS} s."
        ) from error
    try:
        answer = json.loads(child.stdout)
    except ValueError as error:
        # Killed by a limit, processor time most likely; a memory limit may end Python itself too.
        raise ValueError(
            f"The model's chat template was stopped: it takes more than {SECONDS} s or "
            f"{MEMORY_BYTES >> 20} MiB (exit code {child.returncode})."
        ) from error
    if "error" in answer:
        raise ValueError(f"The model's chat template failed: {answer['error']}")
    return answer["text"]


def _limit(seconds: int) -> None:
    """Limits this process, where its system knows how to."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY_BYTES)):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        try:
            resource.setrlimit(kind, (limit, hard))
        except (ValueError, OSError):  # macOS refuses some
            continue


def _render(template: str, fields: dict[str, Any]) -> str:
    """As transformers renders it, but without today's date: a prompt must not change overnight."""
    import jinja2
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    parts, characters = [], 0
    for part in environment.from_string(template).generate(**fields):
        characters += len(part)
        if characters > MAX_CHARACTERS:
            raise ValueError(f"it gives more than {MAX_CHARACTERS} characters.")
        parts.append(part)
    return "".join(parts)


def _main() -> None:
    request = json.load(sys.stdin)
    _limit(request.pop("seconds"))
    try:
        answer = {"text": _render(**request)}
    except MemoryError:
        answer = {"error": f"it takes more than {MEMORY_BYTES >> 20} MiB."}
    except Exception as error:  # anything that a template may do
        answer = {"error": f"{error}"[:2000] or type(error).__name__}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()

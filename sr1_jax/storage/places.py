"""Local stand-ins of places in buckets: one scratch folder a host, and in it one folder a place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

# Names the scratch folder of a host.
SCRATCH = "SR1_JAX_SCRATCH"


def scratch() -> Path:
    """Where this host keeps what belongs into buckets, or comes from there."""
    named = os.environ.get(SCRATCH)
    return Path(named) if named else Path.home() / ".cache" / "sr1_jax" / "buckets"


def stand_in(url: str, purpose: str) -> Path:
    """The local path that stands for an address, with the same last name.

    Args:
        url: in a bucket.
        purpose: files of different purposes do not meet.
    """
    url = url.rstrip("/")
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return scratch() / purpose / name / url.rpartition("/")[2]


def known_as(path: Path) -> str:
    """What a path is called on every host: a stand-in without the scratch folder that it is in."""
    path = path.resolve()
    inside = path.is_relative_to(scratch().resolve())
    return str(path.relative_to(scratch().resolve()) if inside else path)


def file_system_of(path: Path) -> str:
    """The kind of file system that a path lies on, such as ext4 or fuse.gcsfuse; "" where the
    system does not tell.

    Args:
        path: absolute; it need not be there.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found, longest = "", -1
    for line in lines:  # proc(5): …, place, options, optional fields, "-", kind, …
        before, _, after = line.partition(" - ")
        place = before.split()[4].encode().decode("unicode_escape")
        if path.is_relative_to(place) and len(place) >= longest:
            found, longest = after.split()[0], len(place)
    return found

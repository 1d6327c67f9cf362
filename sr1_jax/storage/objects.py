"""Objects of Google Cloud Storage: listed, read, written and deleted, with bounded patience.

An object is there whole or not at all, and each time that one is written it gets another generation
(https://cloud.google.com/storage/docs/consistency, …/docs/metadata#generation-number). What is
read and written is compared with the CRC-32C that the service keeps of it.

The requests go through gcsfs, which `etils.epath` and with it Orbax use for gs:// too. With
STORAGE_EMULATOR_HOST they go there, without credentials.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sr1_jax.exit_codes import ExitCode

_T = TypeVar("_T")
_SCHEME = "gs://"
# In one request; more is read by parts at the same time, and written by parts one after another.
_PART_BYTES = 32 << 20
_THREADS = 8
# How often an object is read until what came is what is stored: it may be written anew meanwhile.
_DOWNLOADS = 4
# A generation that no object has: the condition that there is none.
NEW = "0"


class BucketAway(OSError):
    """A bucket did not answer for as long as was waited, or refused."""

    exit_code = ExitCode.TRANSIENT


class Stored(NamedTuple):
    """What the service tells of an object.

    Attributes:
        size: bytes.
        crc32c: of its content, as the service writes it.
        generation: another each time it is written.
    """

    size: int
    crc32c: str
    generation: str


def is_bucket(place: Any) -> bool:
    """Whether a path, or what was given as one, is the address of something in a bucket."""
    return str(place).startswith(_SCHEME)


def join(url: str, name: str) -> str:
    """The address of `name` below a folder; the folder's own for ""."""
    return f"{url.rstrip('/')}/{name}" if name else url


def split(url: str) -> tuple[str, str]:
    """The bucket of an address, and the name of the object or folder in it.

    Raises:
        ValueError: it names no bucket.
    """
    bucket, _, name = url.removeprefix(_SCHEME).partition("/")
    if not is_bucket(url) or not bucket:
        raise ValueError(f"{url} is no address of the form gs://bucket/name.")
    return bucket, name.strip("/")


@functools.cache
def _seconds() -> tuple[float, float]:
    """How long one answer is waited for, and how long a request is tried again."""
    answer = float(os.environ.get("SR1_JAX_BUCKET_ANSWER_SECONDS", 20))
    return answer, float(os.environ.get("SR1_JAX_BUCKET_PATIENCE_SECONDS", 180))


@functools.cache
def prepare() -> None:
    """Sets how gcsfs is used in this process, by Orbax too: call it before either is.

    Raises:
        ValueError: gcsfs is not installed.
    """
    # It would ask each bucket over gRPC of which kind it is; those of the usual kind need no such.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import aiohttp
        import fsspec
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{_SCHEME} needs the package gcsfs: pip install 'sr1_jax[gcs]', or pip install gcsfs."
        ) from error
    answer, _ = _seconds()
    settings: dict[str, Any] = {
        # Other processes write there too, so what was once listed tells nothing.
        "use_listings_cache": False,
        "cache_timeout": 0,
        "requests_timeout": aiohttp.ClientTimeout(sock_connect=answer, sock_read=answer),
    }
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        settings["token"] = "anon"
    for protocol in ("gs", "gcs"):
        fsspec.config.conf[protocol] = settings | fsspec.config.conf.get(protocol, {})
    # What it gives up it raises; the same again in the log, with traces, helps nobody.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def _files() -> Any:
    """The file system of gcsfs, the one that epath uses."""
    prepare()
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


def _patiently(url: str, ask: Callable[[], _T]) -> _T:
    """What `ask` returns; what may pass is tried again, at growing distances, for some minutes.

    gcsfs itself makes six attempts, and knows no other time-outs than those of connections.

    Raises:
        FileNotFoundError: there is no such object.
        FileExistsError: it has another generation than was asked for.
        BucketAway: all else.
    """
    import aiohttp
    from gcsfs.retry import HttpError, is_retriable

    _, patience = _seconds()
    end, pause = time.monotonic() + patience, 0.25
    while True:
        try:
            return ask()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            passing = is_retriable(error) or isinstance(error, (TimeoutError, aiohttp.ClientError))
            known = passing or isinstance(error, (HttpError, OSError, ValueError))
            if passing and time.monotonic() + pause < end:
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 16)
            elif not known:
                raise
            else:
                what = f"does not answer, tried for {patience:g} s" if passing else "refuses"
                reason = " ".join(str(error).split()) or type(error).__name__
                away = BucketAway(f"{url}: the storage service {what}: {reason}.")
                if not passing:
                    away.exit_code = ExitCode.STORAGE
                raise away from error


def _stored(item: dict[str, Any]) -> Stored:
    return Stored(int(item["size"]), item.get("crc32c") or "", str(item["generation"]))


def crc32c_of(data: bytes) -> str:
    """The CRC-32C of bytes, as the service writes it: of its four bytes, most significant first,
    in base 64."""
    import google_crc32c

    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode("ascii")


def crc32c_of_file(path: Path, size: int | None = None) -> str:
    """As `crc32c_of`, of a file; with `size` of its first bytes."""
    import google_crc32c

    checksum = google_crc32c.Checksum()
    for part in _parts_of(path, size):
        checksum.update(part)
    return base64.b64encode(checksum.digest()).decode("ascii")


def _parts_of(path: Path, size: int | None) -> Iterator[bytes]:
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size if size is None else size
        while part := file.read(min(left, _PART_BYTES)):
            left -= len(part)
            yield part


def listing(url: str) -> dict[str, Stored]:
    """All objects below a folder, by their names there; an object itself has the name "".

    Raises:
        FileNotFoundError: there is no such bucket.
        BucketAway: as `_patiently`.
    """
    bucket, name = split(url)
    found = {}
    for item in _items(url, bucket, name):
        full = item["name"]
        if full == name and name:
            found[""] = _stored(item)
        elif (not name or full.startswith(f"{name}/")) and not full.endswith("/"):
            found[full[len(name) :].lstrip("/")] = _stored(item)
    return found


def _items(url: str, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    files, token = _files(), None
    while True:
        more = {"pageToken": token} if token else {}
        page = _patiently(
            url,
            functools.partial(
                files.call, "GET", "b/{}/o", bucket, prefix=prefix, maxResults=1000,
                json_out=True, **more,
            ),
        )  # fmt: skip
        yield from page.get("items", [])
        token = page.get("nextPageToken")
        if not token:
            return


def stat(url: str) -> Stored:
    """What the service tells of one object.

    Raises:
        FileNotFoundError, BucketAway: as `_patiently`.
    """
    files = _files()
    return _stored(
        _patiently(url, lambda: files.call("GET", "b/{}/o/{}", *split(url), json_out=True))
    )


def read(url: str, start: int = 0, end: int | None = None) -> bytes:
    """Bytes of an object, from `start` up to and without `end`.

    Raises:
        FileNotFoundError, BucketAway: as `_patiently`.
    """
    if end is not None and start >= end:
        return b""
    files = _files()
    last = "" if end is None else end - 1
    headers = {"Range": f"bytes={start}-{last}"} if start or end is not None else {}

    def ask() -> bytes:
        _, data = files.call("GET", "b/{}/o/{}", *split(url), alt="media", headers=headers)
        if end is not None and len(data) != end - start:
            raise TimeoutError(f"{len(data)} bytes came of {end - start}")
        return data

    return _patiently(url, ask)


def write(url: str, data: bytes, generation: str | None = None) -> Stored:
    """Writes an object whole.

    Args:
        url: of the object.
        data: its content.
        generation: that it has to have before, `NEW` where there may be none; None: any.

    Raises:
        FileExistsError: it has another; or its answer was lost, so that it has its new one.
        BucketAway: as `_patiently`.
    """
    files, (bucket, name) = _files(), split(url)
    given = {} if generation is None else {"ifGenerationMatch": generation}
    checksum = crc32c_of(data)

    def ask() -> Stored:
        item = files.call(
            "POST", f"{files._location}/upload/storage/v1/b/{{}}/o", bucket, uploadType="media",
            name=name, data=data, json_out=True,
            headers={"Content-Type": "application/octet-stream"}, **given,
        )  # fmt: skip
        stored = _stored(item)
        if (stored.size, stored.crc32c) != (len(data), checksum):
            raise TimeoutError("another content arrived than was sent")
        return stored

    return _patiently(url, ask)


def upload(url: str, path: Path) -> Stored:
    """Writes a file to an object, whole, as it is now: what is appended meanwhile is left out.

    Raises:
        OSError: the file cannot be read.
        BucketAway: as `_patiently`.
    """
    size = path.stat().st_size
    if size <= _PART_BYTES:
        with open(path, "rb") as file:
            return write(url, file.read(size))
    files, checksum = _files(), crc32c_of_file(path, size)
    snapshot = _beside(path)

    def ask() -> Stored:
        # gcsfs sends a file to its end, so one that grows is copied first.
        grown = path.stat().st_size != size
        if grown and not snapshot.exists():
            with open(snapshot, "wb") as file:
                file.writelines(_parts_of(path, size))
        files.put_file(str(snapshot if grown else path), url)
        stored = stat(url)
        if stored.crc32c != checksum:
            raise TimeoutError("another content arrived than was sent")
        return stored

    try:
        return _patiently(url, ask)
    finally:
        snapshot.unlink(missing_ok=True)


def download(url: str, path: Path, stored: Stored) -> Stored:
    """Writes an object to a file that is there whole or not at all, and compares its checksum.

    Args:
        url: of the object.
        path: of the file.
        stored: what the service told of the object.

    Returns:
        What was written to the file: another than `stored` where that was written anew meanwhile.

    Raises:
        FileNotFoundError, BucketAway: as `_patiently`; or what came is not what is stored.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        for _ in range(_DOWNLOADS):
            _fill(temporary, url, stored.size)
            if crc32c_of_file(temporary) == stored.crc32c:
                temporary.replace(path)
                return stored
            stored = stat(url)
        raise BucketAway(f"{url}: what arrives is not what is stored (CRC-32C). Start again.")
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A file that stands for another for a while, and is itself no output."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _fill(path: Path, url: str, size: int) -> None:
    starts = range(0, size, _PART_BYTES)
    with open(path, "wb") as file, ThreadPoolExecutor(_THREADS) as threads:
        parts = (functools.partial(read, url, at, min(at + _PART_BYTES, size)) for at in starts)
        # No more than there are threads are held in memory.
        waiting = [threads.submit(part) for _, part in zip(range(_THREADS), parts)]
        while waiting:
            file.write(waiting.pop(0).result())
            waiting += [threads.submit(part) for _, part in zip(range(1), parts)]


def delete(url: str, generation: str | None = None) -> None:
    """Deletes an object; nothing happens where there is none.

    Raises:
        FileExistsError: it has another generation than the one given.
        BucketAway: as `_patiently`.
    """
    files = _files()
    given = {} if generation is None else {"ifGenerationMatch": generation}
    with contextlib.suppress(FileNotFoundError):
        _patiently(url, lambda: files.call("DELETE", "b/{}/o/{}", *split(url), **given))


def check_place(url: str, name: str, *, writes: bool) -> None:
    """Finds out at the start whether a place in a bucket can be used.

    Args:
        url: of a file or folder that need not be there.
        name: of the flag or key, for the message.
        writes: whether it is to be written to: an object is, and taken away again.

    Raises:
        ValueError: it cannot.
    """
    bucket, _ = split(url)
    mark = join(url, f".may-write-{os.getpid()}-{random.getrandbits(32):08x}")
    try:
        next(_items(url, bucket, ".none"), None)
        if writes:
            write(mark, b"")
            delete(mark)
    except FileNotFoundError as error:
        raise _no_bucket(url, name) from error
    except BucketAway as error:
        raise ValueError(
            f"{name}={url} cannot be {'written' if writes else 'read'}: {error} Is the name right, "
            "and may this machine's account do so? (docs/clusters.md)"
        ) from error


def _no_bucket(url: str, name: str) -> ValueError:
    return ValueError(f"{name}={url}: there is no bucket {split(url)[0]}.")


def check_may_ask(url: str, name: str) -> None:
    """Finds out whether this machine's account may ask what kind of bucket one is.

    Orbax does where checkpoints are, after it has written some; the right belongs to no role of
    objects alone.

    Args:
        url: of a file or folder that need not be there.
        name: of the flag or key, for the message.

    Raises:
        ValueError: it may not, or there is no such bucket.
        BucketAway: the service does not answer.
    """
    bucket, _ = split(url)
    files = _files()
    try:
        _patiently(url, lambda: files.call("GET", "b/{}", bucket, fields="name", json_out=True))
    except FileNotFoundError as error:
        raise _no_bucket(url, name) from error
    except BucketAway as error:
        if error.exit_code == ExitCode.TRANSIENT:
            raise
        raise ValueError(
            f"{name}={url}: this machine's account may not ask what bucket {bucket} is "
            "(storage.buckets.get), as Orbax does for checkpoints. Give it the role "
            "roles/storage.legacyBucketReader on the bucket, beside that of objects."
        ) from error


def forget() -> None:
    """Lets the next request ask the environment anew: for tests."""
    prepare.cache_clear()
    _seconds.cache_clear()

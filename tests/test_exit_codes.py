"""The code of a program tells whether the same command may be given again."""

import errno
import re
import types

import jax
import pytest

from sr1_jax import exit_codes
from sr1_jax.exit_codes import FINAL, ExitCode, code_of
from sr1_jax.retrieval.http_retriever import SearchFailedError
from sr1_jax.training.guards import Diverged


def in_library(module, base=Exception, **attributes):
    """An error of a library that need not be installed."""
    return type("LibraryError", (base,), {"__module__": module} | attributes)("x")


def caused(error, cause):
    error.__cause__ = cause
    return error


BAD, DEFECT, STORAGE = ExitCode.BAD_INPUT, ExitCode.DEFECT, ExitCode.STORAGE
TRANSIENT, DIVERGED, TERMINATED = ExitCode.TRANSIENT, ExitCode.DIVERGED, ExitCode.TERMINATED
JaxError = jax.errors.JaxRuntimeError
ERRORS = [
    (ValueError("steps must be positive"), BAD),
    (ValueError("NOT_FOUND: no such array"), BAD),
    (FileNotFoundError(errno.ENOENT, "none", "a.jsonl"), BAD),
    (IsADirectoryError(errno.EISDIR, "a folder"), BAD),
    (PermissionError("the server refuses the token"), BAD),
    (RuntimeError("No cluster is found here"), BAD),
    (RuntimeError("Unable to initialize backend 'tpus': Backend 'tpus' is not known"), BAD),
    (RuntimeError("Unable to initialize backend 'tpu': NOT_FOUND: no device"), BAD),
    (RuntimeError("Unable to initialize backend 'tpu': ABORTED: already in use"), TRANSIENT),
    (RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE: no answer"), TRANSIENT),
    (OSError("cannot listen there"), BAD),
    (TypeError("x"), DEFECT),
    (AssertionError(), DEFECT),
    (KeyError("lost"), DEFECT),
    (JaxError("RESOURCE_EXHAUSTED: out of memory allocating 9 bytes"), DEFECT),
    (JaxError("INVALID_ARGUMENT: shapes"), DEFECT),
    (OSError(errno.ENOSPC, "No space left on device"), STORAGE),
    (OSError(errno.EDQUOT, "quota"), STORAGE),
    (OSError(errno.EROFS, "read-only"), STORAGE),
    (PermissionError(errno.EACCES, "denied", "/runs"), STORAGE),
    (ConnectionResetError(errno.ECONNRESET, "reset"), TRANSIENT),
    (ConnectionError("no server answers"), TRANSIENT),
    (TimeoutError(), TRANSIENT),
    (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), TRANSIENT),
    (OSError(errno.ESTALE, "Stale file handle"), TRANSIENT),
    (JaxError("UNAVAILABLE: connection reset by peer"), TRANSIENT),
    (JaxError("INTERNAL: chip halted"), TRANSIENT),
    (JaxError("Gloo all-reduce failed: Connection closed by peer"), TRANSIENT),
    (ValueError("UNAVAILABLE: Error reading gs://b/o: HTTP response code: 503"), TRANSIENT),
    (ValueError("RESOURCE_EXHAUSTED: HTTP response code: 429"), TRANSIENT),
    (SearchFailedError("3 queries were not answered"), TRANSIENT),
    (caused(RuntimeError("The tool failed 3 times"), SearchFailedError("x")), TRANSIENT),
    (ValueError("RESOURCE_EXHAUSTED: … No space left on device [os_error_code='28']"), STORAGE),
    (ValueError("UNAVAILABLE: … Stale file handle [os_error_code='116']"), TRANSIENT),
    (caused(OSError("not written"), OSError(errno.EROFS, "read-only")), STORAGE),
    (caused(RuntimeError("The tool failed 3 times"), ValueError("a defect of it")), BAD),
    (in_library("aiohttp.client"), TRANSIENT),
    (in_library("gcsfs.retry", code=503), TRANSIENT),
    (in_library("gcsfs.retry", code=404), DEFECT),
    (in_library("requests", OSError, response=types.SimpleNamespace(status_code=401)), BAD),
    (FloatingPointError("nan"), DIVERGED),
    (Diverged("step 7"), DIVERGED),
    (InterruptedError("Told to end (SIGTERM)"), TERMINATED),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: repr(value)[:40])
def test_code_of(error, code):
    assert code_of(error) == code


def test_what_is_final():
    assert sorted(FINAL) == [0, 2, 70, 74, 79, 130]


def test_the_table_lists_every_code():
    rows = re.findall(
        r"^\| +(\d+) \| (.*?) *\|.*\| (yes|no) +\|$", exit_codes.__doc__, re.MULTILINE
    )
    told = {int(code): (name, again) for code, name, again in rows}
    assert told.pop(1) == ("", "yes")
    assert told == {
        code: (code.name.lower().replace("_", " "), "no" if code in FINAL else "yes")
        for code in ExitCode
    }

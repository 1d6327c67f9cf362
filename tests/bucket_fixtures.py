"""A storage service for the tests of a folder; see `bucket_emulator`."""

from types import SimpleNamespace

import pytest
from bucket_emulator import BUCKET, BucketServer

from sr1_jax.storage import copies, objects


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A service with an empty bucket, and a scratch folder of the test's own."""
    monkeypatch.setenv("SR1_JAX_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("SR1_JAX_BUCKET_PATIENCE_SECONDS", "60")
    objects.forget()
    copies.forget()
    server = BucketServer()
    server.folder = f"gs://{BUCKET}/folder"
    with server.environment():
        yield server
    server.close()
    objects.forget()


@pytest.fixture
def no_pauses(monkeypatch):
    """Failed requests are tried again at once."""

    async def at_once(seconds):
        pass

    objects.prepare()  # what it says of gcsfs counts before that is imported
    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))

"""The server under what would bring it down: long, with many clients, by its own description."""

import os
import re
import subprocess
import sys

import pytest
import urllib3
from servers import bombard, served

from sr1_jax.retrieval.server import Limits

# Run as a process: its memory is then its own.
PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from servers import served
from sr1_jax.retrieval import Passage

class Echo:
    def search(self, queries, k):
        return [[Passage(str(i), "T", query[:99], 1.0) for i in range(k)] for query in queries]

with served(Echo()) as address:
    print(address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def process():
    """The address of our server in a process of its own."""
    folder = os.path.dirname(__file__)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", PROGRAM, folder], **pipes) as running:
        try:
            yield running.stdout.readline().strip()
            assert running.poll() is None
        finally:
            running.stdin.close()
            running.wait(30)


def resident_mib(address):
    text = urllib3.request("GET", f"{address}/metrics").data.decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    return float(found[1]) / 2**20


@pytest.mark.slow
def test_sixty_four_clients_for_ten_minutes(process):
    """Nothing is answered with 5xx, and memory does not grow."""
    seconds = float(os.environ.get("SR1_JAX_SOAK_SECONDS", "600"))
    bombard(process, seconds=seconds / 10, clients=64)  # buffers and threads come once
    before = resident_mib(process)
    found = bombard(process, seconds=seconds, clients=64)
    after = resident_mib(process)
    print(f"{found}; {before:.1f} MiB before, {after:.1f} MiB after")
    assert all(status < 500 for status in found), found
    assert after < before * 1.05 + 1


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", "sesame"])
def test_what_its_description_says_is_true(fake_retriever, tmp_path, token):
    """schemathesis makes requests of the description, valid and not, and checks the answers."""
    pytest.importorskip("schemathesis")
    with served(fake_retriever(), Limits(queries=20), token=token) as address:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json",
            "--checks=not_a_server_error,response_schema_conformance,status_code_conformance,"
            "content_type_conformance",
            "--max-examples=200", "--workers=4", "--seed=1", "--no-color",
        ]  # fmt: skip
        headers = [f"--header=Authorization: Bearer {token}"] if token else []
        # In a folder of its own: it writes there.
        done = subprocess.run(
            command + headers, cwd=tmp_path, capture_output=True, text=True, timeout=900
        )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

"""Search over vectors that several processes share, each with its part on its own devices.

No program spans hosts and none has a collective, so that a search may be started by any thread and
at any time: among the programs of a rollout it waits its turn, and nobody waits for it on another
device. What has to travel are vectors of queries and the k best of each part; they go from host to
host over TCP. Every process answers for its part in threads of its own.
"""

from __future__ import annotations

import collections
import queue
import struct
import threading
from typing import Any

import numpy as np

from sr1_jax.hosts.sockets import Connection, Ended, Port, connect, own_address, told_by
from sr1_jax.retrieval.dense_search import Found, VectorSearch, merged
from sr1_jax.retrieval.vectors import Vectors

_ASKED = struct.Struct(">IIQ")  # queries, width, k
_FOUND = struct.Struct(">BII")  # 1, queries, k; or 0 and what went wrong
# How long a process may take to load its part, while others want to search already.
_OPEN_SECONDS = 3600
_GONE = "process {}, which shares the dense index, is gone"
_opened: collections.Counter[str] = collections.Counter()


class SharedSearch:
    """Called as a `VectorSearch` over all vectors is; any thread may, in any process.

    Args:
        own: the part of this process.
        first: the place in the corpus of its first passage.
        count: N, of all passages.
        name: of the vectors; a process opens those of one name in the order that others do.
        coordination: of `hosts.channel.coordination`.
    """

    def __init__(self, own: VectorSearch, first: int, count: int, name: str, coordination: Any):
        self.count, self.width, self.dtype = count, own.width, own.dtype
        self._own, self._first = own, first
        self._device = threading.Lock()  # one search of this part at a time
        self._store, self._process = coordination.client, coordination.process_id
        self._processes = range(coordination.num_processes)
        _opened[name] += 1
        self._name = f"search/{name}/{_opened[name]}"
        address = own_address(coordination.coordinator_address)
        self._port = Port(self._store, f"{self._name}/{self._process}", address)
        # Connections that no thread is using, by process.
        self._idle: dict[int, queue.SimpleQueue] = {p: queue.SimpleQueue() for p in self._processes}
        threading.Thread(target=self._listen, name="sr1_jax shared search", daemon=True).start()

    def __call__(self, query_BD: np.ndarray, k: int) -> Found:
        """See `VectorSearch`.

        Raises:
            RuntimeError: another process is gone, or failed in its part.
        """
        k = min(k, self.count)
        if not len(query_BD):
            return Found(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        query_BD = np.ascontiguousarray(query_BD, np.float32)
        asked = _ASKED.pack(*query_BD.shape, k) + query_BD.tobytes()
        others = {p: self._connection(p) for p in self._processes if p != self._process}
        for process, other in others.items():
            told_by(other.send, asked, gone=_GONE.format(process))
        found = {self._process: self._search(query_BD, k)}
        for process, other in others.items():
            answer = told_by(other.receive, gone=_GONE.format(process))
            found[process] = _found_by(process, answer)
            self._idle[process].put(other)
        in_corpus_order = [found[process] for process in self._processes]
        return merged(*(np.stack(parts) for parts in zip(*in_corpus_order)), k)

    def _search(self, query_BD: np.ndarray, k: int) -> Found:
        """The k best of this part; a part that has fewer gives as many that nobody takes."""
        with self._device:
            score_Bk, number_Bk = self._own(query_BD, k)
        missing = ((0, 0), (0, k - score_Bk.shape[1]))
        score_Bk = np.pad(score_Bk, missing, constant_values=-np.inf)
        return Found(score_Bk, np.pad(number_Bk + self._first, missing))

    def _connection(self, process: int) -> Connection:
        try:
            return self._idle[process].get_nowait()
        except queue.Empty:
            return connect(self._store, f"{self._name}/{process}", _OPEN_SECONDS)

    def _listen(self) -> None:
        while True:
            caller = self._port.accept()
            threading.Thread(
                target=self._answer, args=(caller,), name="sr1_jax shared search", daemon=True
            ).start()

    def _answer(self, caller: Connection) -> None:
        """Searches this part for a thread of another process, until that is gone."""
        try:
            while True:
                asked = caller.receive()
                queries, width, k = _ASKED.unpack_from(asked)
                query_BD = np.frombuffer(asked, np.float32, offset=_ASKED.size)
                try:
                    found = self._search(query_BD.reshape(queries, width), k)
                    answer = _FOUND.pack(1, queries, k) + b"".join(x.tobytes() for x in found)
                except Exception as error:  # the caller's to judge
                    answer = _FOUND.pack(0, 0, 0) + repr(error).encode()
                caller.send(answer)
        except Ended:
            caller.close()


def part_of(vectors: Vectors, process: int, processes: int) -> tuple[int, Vectors]:
    """The part of some vectors that one of several processes keeps, and where it begins.

    Raises:
        ValueError: there are fewer vectors than processes.
    """
    if vectors.count < processes:
        raise ValueError(
            f"a dense index of {vectors.count} passages cannot be shared by {processes} processes; "
            "set retrieval.kind=bm25, or give a larger corpus."
        )
    first, last = (vectors.count * p // processes for p in (process, process + 1))

    def within(read):
        if read is None:
            return None
        return lambda start, end: read(first + start, first + end)

    own = Vectors(
        last - first, vectors.width, vectors.dtype, within(vectors.rows), within(vectors.scales)
    )
    return first, own


def _found_by(process: int, answer: bytes) -> Found:
    worked, queries, k = _FOUND.unpack_from(answer)
    if not worked:
        raise RuntimeError(
            f"the search of process {process} failed: {answer[_FOUND.size :].decode()}"
        )
    scores = queries * k * np.dtype(np.float32).itemsize
    score_Bk = np.frombuffer(answer[_FOUND.size : _FOUND.size + scores], np.float32)
    number_Bk = np.frombuffer(answer[_FOUND.size + scores :], np.int64)
    return Found(score_Bk.reshape(queries, k), number_Bk.reshape(queries, k))

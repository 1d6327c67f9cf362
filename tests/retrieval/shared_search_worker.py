"""One of two processes that share a dense index: FOLDER HOST:PORT PROCESS."""

import json
import sys
import threading
from pathlib import Path

import jax

from sr1_jax import cluster
from sr1_jax.agreement import once_a_file_system, wait_for_all
from sr1_jax.retrieval import open_retriever
from sr1_jax.retrieval.settings import RETRIEVAL


def main(folder, coordinator, process):
    cluster.join(coordinator, 2, process)
    config = RETRIEVAL.defaults()
    config.kind = "dense"
    config.dense.encoder, config.dense.dtype = str(folder / "small-e5"), "float32"
    config.dense.search.block = 64
    retriever = once_a_file_system(
        folder / "index",
        lambda: open_retriever(config, folder / "corpus.jsonl", folder / "index" / "dense"),
    )
    queries = json.loads((folder / "queries.json").read_text())
    found = [None] * len(queries)

    def ask(first):
        for row in range(first, len(queries), 4):
            (found[row],) = retriever.search([queries[row]], 5)

    def ask_all():
        """From four threads, whose searches meet those of the other process."""
        threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ask_all()
    wait_for_all()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    ask_all()
    told = {
        "found": [[(p.id, p.title, p.text) for p in passages] for passages in found],
        "rows": retriever.inner._search._own._layout.rows if hasattr(retriever, "inner")
        else retriever._search._own._layout.rows,
        "compiled_again": len(compiled),
    }  # fmt: skip
    (folder / f"{process}.json").write_text(json.dumps(told))
    wait_for_all()  # the other may still be asking


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

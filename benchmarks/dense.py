"""Exact dense search: ours beside FAISS's flat index, and what fewer bits cost in recall.

    python benchmarks/dense.py [--vectors=1000000] [--width=384] [--k=10] [--batches=1,64,256]
        [--dtypes=float32,bfloat16,int8] [--rounds=5] [--others]
    python benchmarks/dense.py --encoder=FOLDER [--passages=2000]

The vectors are drawn around 10,000 centres, as those of texts lie, and have length 1; queries are
drawn around the same centres. Printed are seconds a batch (the median and the least of some rounds)
and, but for float32, the share of the k best of float32 that is found. `--others` adds faiss-cpu's
IndexFlatIP, if it is installed, over the same vectors and on as many threads as there are cores; it
and ours are measured in turns, so that a load on the machine is a load on both, and what both find
is compared. The approximate search is exact on CPUs; its recall is worth printing on TPUs alone.

With --encoder, how many passages of 100 words it embeds in a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np


def draw(count: int, centre_CD: np.ndarray, seed: int) -> np.ndarray:
    """Vectors of length 1 around centres."""
    rng = np.random.default_rng(seed)
    width = centre_CD.shape[1]
    vector_ND = np.empty((count, width), np.float32)
    for first in range(0, count, 65_536):  # a few at a time: noise is drawn in float64
        rows = vector_ND[first : first + 65_536]
        rows[:] = centre_CD[rng.integers(0, len(centre_CD), len(rows))]
        rows += rng.standard_normal(rows.shape, dtype=np.float32) * (0.7 / width**0.5)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return vector_ND


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def recall(found_Bk: np.ndarray, exact_Bk: np.ndarray) -> float:
    pairs = zip(found_Bk.tolist(), exact_Bk.tolist())
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def measure(arguments: argparse.Namespace) -> None:
    import jax

    from sr1_jax.retrieval.dense_search import VectorSearch
    from sr1_jax.retrieval.vectors import Vectors, as_dtype
    from sr1_jax.sharding import make_mesh

    mesh = make_mesh()
    device = jax.devices()[0].device_kind
    print(f"{arguments.vectors:,} × {arguments.width}, k={arguments.k}, {mesh.size} × {device}")
    rng = np.random.default_rng(0)
    centre_CD = rng.standard_normal((10_000, arguments.width), dtype=np.float32)
    centre_CD /= np.linalg.norm(centre_CD, axis=1, keepdims=True)
    vector_ND = draw(arguments.vectors, centre_CD, 1)
    query_BD = draw(max(arguments.batches), centre_CD, 2)
    exact_Bk = None
    for dtype in arguments.dtypes:
        vectors = Vectors.of(*as_dtype(vector_ND, dtype))
        batches = tuple(sorted(arguments.batches))
        search = VectorSearch(vectors, mesh, block=arguments.block, batches=batches)
        others = {"ours": lambda some, s=search: s(some, arguments.k).number_Bk}
        if arguments.others and dtype == "float32":
            others["faiss"] = open_faiss(vector_ND, arguments.k)
        for batch in batches:
            report(dtype, query_BD[:batch], others, arguments.rounds)
        found_Bk = others["ours"](query_BD)
        if dtype == "float32":
            exact_Bk = found_Bk
            if "faiss" in others:
                same = recall(others["faiss"](query_BD), found_Bk)
                print(f"float32   both find the same: {same:.2%} of the {arguments.k} best")
        elif exact_Bk is not None:
            print(f"{dtype:9} recall@{arguments.k} {recall(found_Bk, exact_Bk):.4f}")
        del search, others


def open_faiss(vector_ND: np.ndarray, k: int) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(_cores())
    index = faiss.IndexFlatIP(vector_ND.shape[1])
    index.add(vector_ND)
    return lambda some: index.search(some, k)[1]


def _cores() -> int:
    from sr1_jax.retrieval.processes import cores

    return cores()


def report(dtype: str, query_BD: np.ndarray, engines: dict[str, Callable], rounds: int) -> None:
    for search in engines.values():
        search(query_BD)  # compiles
    times = {name: [] for name in engines}
    for _ in range(rounds):
        for name, search in engines.items():
            times[name].append(seconds(lambda search=search: search(query_BD)))
    for name, taken in times.items():
        print(
            f"{dtype:9} batch {len(query_BD):4} {name:6} median {statistics.median(taken):.4f} s, "
            f"least {min(taken):.4f} s",
            flush=True,
        )


def measure_encoder(folder: str, count: int) -> None:
    from sr1_jax.models.encoder_folder import load_encoder
    from sr1_jax.retrieval.embedder import Embedder
    from sr1_jax.sharding import make_mesh

    rng = np.random.default_rng(0)
    words = ["river", "king", "of", "the", "city", "was", "born", "in", "music", "war"]
    passages = [("Title", " ".join(rng.choice(words, 100))) for _ in range(count)]
    mesh = make_mesh()
    embedder = Embedder(load_encoder(folder), mesh, (64 * mesh.size,))
    embedder.passages(passages[: 64 * mesh.size])  # compiles
    taken = seconds(lambda: embedder.passages(passages))
    print(f"{count / taken:.0f} passages a second")


def main() -> None:
    numbers = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batches", type=numbers, default=(1, 64, 256))
    parser.add_argument("--block", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--dtypes", type=lambda text: text.split(","), default=["float32", "bfloat16", "int8"]
    )
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--encoder", default="")
    parser.add_argument("--passages", type=int, default=2000)
    arguments = parser.parse_args()
    if arguments.encoder:
        measure_encoder(arguments.encoder, arguments.passages)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()

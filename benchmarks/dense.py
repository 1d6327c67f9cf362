"""Exact dense search: ours beside FAISS's flat index, and what fewer bits cost in recall.

    python benchmarks/dense.py [--vectors=1000000] [--width=384] [--k=10] [--batches=1,64,256]
        [--dtypes=float32,bfloat16,int8] [--rounds=5] [--others] [--approximate=HNSW32:efSearch=64]
    python benchmarks/dense.py --encoder=FOLDER [--passages=2000]

The vectors are drawn around 10,000 centres, as those of texts lie, and have length 1; queries are
drawn around the same centres. Printed are the median times of a batch and, but for float32, the
share of the k best of float32 that is found. `--others` adds faiss-cpu's IndexFlatIP, if it is
installed, over the same vectors and on as many threads as there are cores; it and ours are measured
in turns, so that a load on the machine is a load on both, the ratio of their times is printed, and
what both find is compared. The approximate search is exact on CPUs; its recall is worth printing on
TPUs alone.

With --approximate, indexes that FAISS makes of them (retrieval.dense.search.faiss and, behind a
colon, its faiss_parameters; several with semicolons): how long each takes to make, its searches
beside the exact ones of float32 in turns, and its recall.

With --encoder, how many passages of 100 words it embeds in a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from timing import compare


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
        engines = {}
        if arguments.others and dtype == "float32":
            engines["faiss"] = open_faiss(vector_ND, arguments.k)
        engines["ours"] = lambda some, s=search: s(some, arguments.k).number_Bk
        for batch in batches:
            sides = {
                name: lambda find=find, some=query_BD[:batch]: find(some)
                for name, find in engines.items()
            }
            compare(sides, arguments.rounds, f"{dtype:9} batch {batch:4} ")
        found_Bk = engines["ours"](query_BD)
        if dtype == "float32":
            exact_Bk = found_Bk
            if "faiss" in engines:
                same = recall(engines["faiss"](query_BD), found_Bk)
                print(f"float32   both find the same: {same:.2%} of the {arguments.k} best")
            for asked in filter(None, arguments.approximate.split(";")):
                approximate(asked, vectors, engines["ours"], query_BD, exact_Bk, arguments)
        elif exact_Bk is not None:
            print(f"{dtype:9} recall@{arguments.k} {recall(found_Bk, exact_Bk):.4f}")
        del search, engines


def approximate(asked, vectors, ours, query_BD, exact_Bk, arguments) -> None:
    """An index of FAISS beside our exact search."""
    from sr1_jax.retrieval.bm25_build import no_progress
    from sr1_jax.retrieval.faiss_search import FaissSearch, make_faiss

    factory, _, parameters = asked.partition(":")
    began = time.perf_counter()
    index = make_faiss(vectors, factory, no_progress)
    search = FaissSearch(index, parameters)
    print(f"{asked}: made in {time.perf_counter() - began:.0f} s")
    for batch in sorted(arguments.batches):
        some = query_BD[:batch]
        sides = {asked: lambda: search(some, arguments.k), "ours": lambda: ours(some)}  # noqa: B023
        compare(sides, arguments.rounds, f"{asked} batch {batch:4} ")
    found_Bk = search(query_BD, arguments.k).number_Bk
    print(f"{asked} recall@{arguments.k} {recall(found_Bk, exact_Bk):.4f}")


def open_faiss(vector_ND: np.ndarray, k: int) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    from sr1_jax.retrieval.processes import cores

    faiss.omp_set_num_threads(cores())
    index = faiss.IndexFlatIP(vector_ND.shape[1])
    index.add(vector_ND)
    return lambda some: index.search(some, k)[1]


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
    began = time.perf_counter()
    embedder.passages(passages)
    print(f"{count / (time.perf_counter() - began):.0f} passages a second")


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
    parser.add_argument("--approximate", default="")
    parser.add_argument("--encoder", default="")
    parser.add_argument("--passages", type=int, default=2000)
    arguments = parser.parse_args()
    if arguments.encoder:
        measure_encoder(arguments.encoder, arguments.passages)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()

"""Time and memory of BM25: our build and search, and other engines on the same passages.

    python benchmarks/retrieval.py [--passages=100000,1000000] [--queries=1280] [--k=3] [--others]
    python benchmarks/retrieval.py --corpus=FILE --questions=FILE[,FILE...] [--others]

Without a corpus the passages are synthetic: 80 words each, of 200,000, by a Zipf law of exponent
1.05; queries are six words of the same law, in batches of 64. With one, the queries are the
questions, and the share of them whose answer stands in the top 3 and top 10 passages is printed;
questions answered yes or no are left out of it.

`--others` adds bm25s, used plainly, rank_bm25, tantivy and Pyserini, as far as they are installed;
each engine has a process of its own. Memory is the greatest sum, over the processes of a side, of
their resident pages that no other process shares ("build") or of all their resident pages
("resident", in which pages of mapped files count that the kernel may take back). rank_bm25 looks
at every passage for every word in Python and gets a hundredth of the queries.
Of several sizes the growth is printed, and from the last two what 21,015,324 passages would take:
times and sizes go on growing by the power of the corpus that they grew by, at least in proportion.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

WIKIPEDIA = 21_015_324
BATCH = 64
OTHERS = ("bm25s", "bm25s+numba", "rank_bm25", "tantivy", "pyserini")


def draw(rng: np.random.Generator, shape: tuple[int, int]) -> list[list[int]]:
    """Rows of word numbers by the Zipf law."""
    weights = np.arange(1, 200_001, dtype=float) ** -1.05
    law = np.cumsum(weights / weights.sum())
    return np.searchsorted(law, rng.random(shape)).tolist()


def write_corpus(path: Path, count: int) -> None:
    """Synthetic passages."""
    rng = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8") as file:
        for first in range(0, count, 10_000):
            for i, words in enumerate(draw(rng, (min(10_000, count - first), 80)), first):
                text = " ".join([f"w{word}" for word in words])
                file.write(json.dumps({"id": str(i), "contents": f'"Page {i}"\n{text}'}) + "\n")


def synthetic_queries(count: int) -> list[str]:
    words = draw(np.random.default_rng(1), (count, 6))
    return [" ".join(f"w{word}" for word in row) for row in words]


# ---- engines: each makes its index in `folder`, and opens it as a function of (queries, k) that
# returns the ids of the passages found.


def texts_of(corpus: Path) -> Iterator[tuple[str, str]]:
    from sr1_jax.retrieval import read_corpus

    return ((passage_id, f"{title}\n{text}") for passage_id, title, text in read_corpus(corpus))


def build_ours(corpus: Path, folder: Path) -> None:
    from sr1_jax.retrieval import BM25Retriever

    BM25Retriever.build(corpus, folder / "index")


def open_ours(corpus: Path, folder: Path):
    from sr1_jax.retrieval import BM25Retriever

    retriever = BM25Retriever.load(folder / "index")
    return lambda queries, k: [[p.id for p in row] for row in retriever.search(queries, k)]


def build_bm25s(corpus: Path, folder: Path) -> None:
    import bm25s
    import Stemmer

    ids, texts = zip(*texts_of(corpus))
    words = bm25s.tokenize(
        list(texts), stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False
    )
    engine = bm25s.BM25(k1=0.9, b=0.4)
    engine.index(words, show_progress=False)
    engine.save(folder / "index")
    (folder / "ids.json").write_text(json.dumps(ids))


def open_bm25s(corpus: Path, folder: Path, backend: str = "numpy"):
    import bm25s
    import Stemmer

    engine = bm25s.BM25.load(folder / "index", mmap=True)
    engine.backend = backend
    if backend == "numba":
        import numba  # noqa: F401  # refused here where it is not installed

        engine.activate_numba_scorer()
    ids, stemmer = json.loads((folder / "ids.json").read_text()), Stemmer.Stemmer("english")
    # What the library's guide to speed says: as many threads as cores.
    threads = 0 if backend == "numba" else len(os.sched_getaffinity(0))

    def search(queries, k):
        options = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
        found, _ = engine.retrieve(
            bm25s.tokenize(queries, **options), k=k, show_progress=False,
            n_threads=threads if len(queries) > 1 else 0,
        )  # fmt: skip
        return [[ids[i] for i in row] for row in found]

    return search


def open_rank_bm25(corpus: Path, folder: Path):
    import rank_bm25

    from sr1_jax.retrieval.words import QueryWords

    words = QueryWords("english", "en")
    ids, documents = zip(*((i, words.split(text)) for i, text in texts_of(corpus)))
    engine = rank_bm25.BM25Okapi(documents, k1=0.9, b=0.4)

    def search(queries, k):
        scores = (engine.get_scores(words.split(query)) for query in queries)
        return [[ids[i] for i in np.argsort(-row)[:k]] for row in scores]

    return search


def build_tantivy(corpus: Path, folder: Path) -> None:
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_text_field("id", stored=True, tokenizer_name="raw")
    schema.add_text_field("text", tokenizer_name="en_stem")
    (folder / "index").mkdir()
    index = tantivy.Index(schema.build(), path=str(folder / "index"))
    writer = index.writer(500_000_000, len(os.sched_getaffinity(0)))
    for passage_id, text in texts_of(corpus):
        writer.add_document(tantivy.Document(id=passage_id, text=text))
    writer.commit()
    writer.wait_merging_threads()


def open_tantivy(corpus: Path, folder: Path):
    from concurrent.futures import ThreadPoolExecutor

    import tantivy

    index = tantivy.Index.open(str(folder / "index"))
    searcher = index.searcher()
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def search_one(query, k):
        parsed, _ = index.parse_query_lenient(query, ["text"])
        return [searcher.doc(hit)["id"][0] for _, hit in searcher.search(parsed, k).hits]

    return lambda queries, k: list(pool.map(lambda query: search_one(query, k), queries))


def build_pyserini(corpus: Path, folder: Path) -> None:
    (folder / "json").mkdir()
    with open(folder / "json" / "corpus.jsonl", "w", encoding="utf-8") as file:
        for passage_id, text in texts_of(corpus):
            file.write(json.dumps({"id": passage_id, "contents": text}) + "\n")
    subprocess.run(
        [
            sys.executable, "-m", "pyserini.index.lucene", "--collection", "JsonCollection",
            "--input", str(folder / "json"), "--index", str(folder / "index"),
            "--generator", "DefaultLuceneDocumentGenerator", "--threads", "2", "--quiet",
        ],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def open_pyserini(corpus: Path, folder: Path):
    from pyserini.search.lucene import LuceneSearcher

    searcher = LuceneSearcher(str(folder / "index"))
    searcher.set_bm25(0.9, 0.4)
    threads = len(os.sched_getaffinity(0))

    def search(queries, k):
        names = [str(i) for i in range(len(queries))]
        found = searcher.batch_search(queries, names, k, threads)
        return [[hit.docid for hit in found.get(name, ())] for name in names]

    return search


ENGINES = {
    "ours": (build_ours, open_ours),
    "bm25s": (build_bm25s, open_bm25s),
    "bm25s+numba": (build_bm25s, lambda *of: open_bm25s(*of, backend="numba")),
    "rank_bm25": (lambda corpus, folder: None, open_rank_bm25),
    "tantivy": (build_tantivy, open_tantivy),
    "pyserini": (build_pyserini, open_pyserini),
}


# ---- measuring


def _kibibytes(pid: int, key: str) -> int:
    """Of a process and its children; 0 of one that has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        of_children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # Children of other threads than the first.
        for task in Path(f"/proc/{pid}/task").iterdir():
            of_children += (task / "children").read_text().split()
    except OSError:
        return 0
    values = (line.split()[1] for line in text.splitlines() if line.startswith(key))
    return sum(map(int, values)) + sum(_kibibytes(int(c), key) for c in set(of_children))


@contextmanager
def peak(key: str) -> Iterator[list[float]]:
    """Puts into the list the greatest memory of this process and its children, in MiB."""
    result, over = [0.0], threading.Event()

    def watch():
        while not over.wait(0.1):
            result[0] = max(result[0], _kibibytes(os.getpid(), key) / 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield result
    finally:
        result[0] = max(result[0], _kibibytes(os.getpid(), key) / 1024)
        over.set()
        thread.join()


def measure_build(name: str, corpus: Path, folder: Path) -> dict[str, float]:
    processor = time.process_time() + sum(os.times()[2:4])
    began = time.perf_counter()
    with peak("Pss_Anon:") as memory:
        ENGINES[name][0](corpus, folder)
    took = time.perf_counter() - began
    processor = time.process_time() + sum(os.times()[2:4]) - processor
    index = folder / "index"
    size = sum(f.stat().st_size for f in index.rglob("*") if f.is_file()) if index.exists() else 0
    return {
        "build_s": took,
        "build_processor_s": processor,
        "build_mib": memory[0],
        "index_mib": size / 2**20,
    }


def measure_search(
    name: str, corpus: Path, folder: Path, queries: list[str], k: int
) -> dict[str, float]:
    before = _kibibytes(os.getpid(), "Rss:") / 1024
    began = time.perf_counter()
    search = ENGINES[name][1](corpus, folder)
    result = {"load_s": time.perf_counter() - began}
    result["load_mib"] = _kibibytes(os.getpid(), "Rss:") / 1024 - before
    if name == "rank_bm25":
        queries = queries[: max(10, len(queries) // 100)]
    warm, singles = queries[:BATCH], queries[: len(queries) // 2]
    search(warm, k)
    times = []
    for query in singles:
        began = time.perf_counter()
        search([query], k)
        times.append(1e3 * (time.perf_counter() - began))
    processor, began = time.process_time(), time.perf_counter()
    for first in range(0, len(queries), BATCH):
        search(queries[first : first + BATCH], k)
    took = time.perf_counter() - began
    return result | {
        "queries_per_s": len(queries) / took,
        "processor_ms": 1e3 * (time.process_time() - processor) / len(queries),
        "single_ms": float(np.mean(times)),
        "p99_ms": float(np.percentile(times, 99)),
        "resident_mib": _kibibytes(os.getpid(), "Rss:") / 1024,
    }


def answers_found(search, corpus: Path, questions: list[dict]) -> dict[str, float]:
    """Share of the questions whose answer stands in the top 3 and the top 10 passages, in %."""
    from sr1_jax.rewards import normalize_answer

    text_of = {i: normalize_answer(text) for i, text in texts_of(corpus)}
    found = search([question["question"] for question in questions], 10)
    shares = {}
    for k in (3, 10):
        hits = 0
        for question, ids in zip(questions, found):
            answers = [normalize_answer(answer) for answer in question["golden_answers"]]
            hits += any(answer in text_of[i] for answer in answers for i in ids[:k])
        shares[f"top{k}"] = 100 * hits / len(questions)
    return shares


def read_questions(path: str) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if not row.get("metadata", {}).get("yes_no")]


def child(args) -> None:
    """One engine, in a process of its own: prints its figures as JSON."""
    corpus, folder = Path(args.corpus), Path(args.folder)
    files = args.questions.split(",") if args.questions else []
    if args.stage == "build":
        print(json.dumps(measure_build(args.engine, corpus, folder)))
        return
    questions = {Path(path).stem: read_questions(path) for path in files}
    texts = [q["question"] for rows in questions.values() for q in rows]
    queries = (texts or synthetic_queries(args.queries))[: args.queries]
    result = measure_search(args.engine, corpus, folder, queries, args.k)
    if questions:
        search = ENGINES[args.engine][1](corpus, folder)
        for name, rows in questions.items():
            result |= {f"{name} {k}": v for k, v in answers_found(search, corpus, rows).items()}
    print(json.dumps(result))


def run(engine: str, corpus: Path, args) -> dict[str, float] | None:
    """The figures of an engine; None, and the reason printed, where it cannot run."""
    result = {}
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        for stage in ("build", "search"):
            command = [
                sys.executable, __file__, f"--engine={engine}", f"--stage={stage}",
                f"--corpus={corpus}", f"--folder={folder}", f"--questions={args.questions}",
                f"--queries={args.queries}", f"--k={args.k}",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{engine}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
                return None
            result |= json.loads(done.stdout.splitlines()[-1])
    load = os.getloadavg()[0]
    print(f"{engine} (load {load:.1f}): " + ", ".join(f"{k} {v:.4g}" for k, v in result.items()))
    return result


def print_growth(counts: list[int], results: list[dict[str, float]]) -> None:
    """How figures grow from one size to the next, and on to Wikipedia."""
    keys = ("build_s", "build_processor_s", "index_mib", "processor_ms", "single_ms")
    for (small, a), (large, b) in zip(zip(counts, results), list(zip(counts, results))[1:]):
        ratios = ", ".join(f"{key} × {b[key] / a[key]:.2f}" for key in keys)
        print(f"{small:,} to {large:,}: {ratios}")
    (small, a), (large, b) = list(zip(counts, results))[-2:]
    told = []
    for key in keys:
        power = max(1.0, math.log(b[key] / a[key]) / math.log(large / small))
        told.append(f"{key} {b[key] * (WIKIPEDIA / large) ** power:,.0f}")
    print(f"{WIKIPEDIA:,} passages, extrapolated from {large:,}: " + ", ".join(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", default="10000,100000", help="sizes of synthetic corpora")
    parser.add_argument("--corpus", default="", help="real passages instead")
    parser.add_argument("--questions", default="", help="real questions, files with commas")
    parser.add_argument("--queries", type=int, default=1280)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--others", action="store_true", help="other engines too")
    parser.add_argument("--folder", default="", help="for indexes; a temporary one by default")
    parser.add_argument("--engine", default="", choices=["", *ENGINES], help=argparse.SUPPRESS)
    parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        child(args)
        return
    engines = ["ours", *(OTHERS if args.others else ())]
    if args.corpus:
        for engine in engines:
            run(engine, Path(args.corpus), args)
        return
    counts = sorted(map(int, args.passages.split(",")))
    results = []
    with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
        for count in counts:
            print(f"{count:,} synthetic passages", flush=True)
            corpus = Path(folder) / "corpus.jsonl"
            write_corpus(corpus, count)
            results.append(run("ours", corpus, args))
            for engine in engines[1:]:
                run(engine, corpus, args)
    if len(counts) > 1:
        print_growth(counts, results)


if __name__ == "__main__":
    main()

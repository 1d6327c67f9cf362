"""Seconds to load 200,000 questions, questions a second of streaming, memory meanwhile.

    python benchmarks/questions.py [--count=200000 --drawn=200000] [--curriculum] [--files=2]

Writes files of made-up questions of the length of NQ's and HotpotQA's, two sets in turn, and loads
them in a new process each time:

    first   the files are read, checked and prepared as ArrayRecord, the first batch is taken
    again   they are found prepared: hashes are compared, the first batch is taken
    listed  all questions as Python objects (`read_questions`), for comparison

Seconds count from the call to the first batch of questions; the import of the libraries is told
apart, and CPU seconds tell how busy the machine was with other things. The second process goes on
to stream, in batches of 512, with weights of the two sets or, by --curriculum, with rates told
after each batch, and prints its resident memory as it goes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETS = ("nq", "hotpotqa")
BATCH = 512
WORDS = "who what where which of the in a film city river born played first album directed".split()


def write_files(folder: Path, count: int, files: int) -> list[str]:
    """`count` questions, over several files; returns their paths."""
    generator = random.Random(0)
    paths = []
    for number in range(files):
        name = SETS[number % len(SETS)]
        path = folder / f"{name}-{number}.jsonl"
        with open(path, "w") as file:
            for index in range(number, count, files):
                words = generator.choices(WORDS, k=generator.randint(6, 22))
                row = {
                    "id": f"{name}:train:{index}",
                    "question": f"{' '.join(words)} {index}?",
                    "golden_answers": [f"answer {index}", f"the answer {index}"],
                    "metadata": {"type": "bridge", "level": "hard", "yes_no": False},
                }
                file.write(json.dumps(row) + "\n")
        paths.append(str(path))
    return paths


def resident_mib() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def tell(**figures: float) -> None:
    print(json.dumps(figures), flush=True)


def list_all(paths: list[str]) -> None:
    from sr1_jax.data.questions import read_questions

    before = resident_mib()
    began = time.perf_counter()
    questions = read_questions(*paths)
    tell(
        load_seconds=time.perf_counter() - began,
        questions=len(questions),
        more_mib=resident_mib() - before,
    )


def load(paths: list[str], data_dir: str, drawn: int, curriculum: bool) -> None:
    began = time.perf_counter()
    from sr1_jax.data.builder import open_questions, prepare_questions
    from sr1_jax.data.curriculum import Curriculum, CurriculumStream
    from sr1_jax.data.stream import QuestionStream

    import_seconds, before = time.perf_counter() - began, resident_mib()
    began, used = time.perf_counter(), time.process_time()
    fingerprint = prepare_questions({"train": paths}, data_dir)
    source = open_questions(data_dir, "train", fingerprint)
    weights = {name: 1.0 for name in source.index.sources}
    if curriculum:
        stream = CurriculumStream(source, seed=0, curriculum=Curriculum(), weights=weights)
    else:
        stream = QuestionStream(source, seed=0, weights=weights)
    batch = stream.take(BATCH)
    tell(
        load_seconds=time.perf_counter() - began,
        load_cpu_seconds=time.process_time() - used,
        import_seconds=import_seconds,
        questions=len(source),
        more_mib=resident_mib() - before,
    )
    began, used, shown = time.perf_counter(), time.process_time(), 0
    while stream.position < drawn:
        stream.observe(batch, [len(question.id) % 5 / 4 for question in batch])
        batch = stream.take(BATCH)
        if stream.position * 8 // drawn > shown:
            shown = stream.position * 8 // drawn
            tell(drawn=stream.position, resident_mib=resident_mib())
    if drawn > BATCH:
        seconds = time.perf_counter() - began
        count, cpu_seconds = stream.position - BATCH, time.process_time() - used
        tell(questions_per_second=count / seconds, per_cpu_second=count / cpu_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--drawn", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--curriculum", action="store_true")
    parser.add_argument("--side", choices=("first", "again", "listed"), help=argparse.SUPPRESS)
    parser.add_argument("--paths", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--data_dir", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "listed":
        list_all(args.paths)
    elif args.side:
        drawn = args.drawn if args.side == "again" else 0
        load(args.paths, args.data_dir, drawn, args.curriculum)
    else:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_files(Path(folder), args.count, args.files)
            for side in ("first", "again", "listed"):
                print(f"{side}:", flush=True)
                given = [f"--side={side}", f"--data_dir={folder}/data", f"--drawn={args.drawn}"]
                given += ["--curriculum"] * args.curriculum
                command = [sys.executable, __file__, *given, "--paths", *paths]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

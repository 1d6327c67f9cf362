"""Whether dense search finds what brute force finds: on a device, on several, in processes.

    python benchmarks/exact.py --index=DIR --questions=FILE[,FILE...] [--k=10] [--devices=8]
        [--processes=2]

Each question is asked of a dense index (of `python -m sr1_jax.index`), whose encoder has to be
where it was. Brute force is all inner products of the same queries with all vectors of the index,
in float64. Printed are the questions whose passages are the same, in the same order; of the others
the largest difference between the brute-force scores of what was found and of the best. --devices
are virtual ones of a CPU.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import ml_dtypes
import numpy as np
import processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--questions", type=lambda text: text.split(","), required=True)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--devices", type=int, default=1)
    processes.define(parser)
    args = parser.parse_args()
    flag = f"--xla_force_host_platform_device_count={args.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    if processes.joined(args):
        compare(args)


def compare(args: argparse.Namespace) -> None:
    import jax

    from sr1_jax.agreement import gather
    from sr1_jax.data.questions import read_questions
    from sr1_jax.retrieval.dense import open_as_built

    retriever = open_as_built(args.index)
    queries = [q.question for path in args.questions for q in read_questions(path)]
    # Each process asks its own, at the same time.
    queries = queries[jax.process_index() :: jax.process_count()]
    found = retriever.search(queries, args.k)
    number_of = {retriever.passage(number).id: number for number in range(len(retriever))}
    found_Bk = np.array([[number_of[passage.id] for passage in passages] for passages in found])

    query_BD = retriever.embedder.queries(queries).vector_ND
    if retriever.vectors.dtype != "float32":  # then a search rounds its queries
        query_BD = query_BD.astype(ml_dtypes.bfloat16)
    query_BD = query_BD.astype(np.float64)
    vector_ND = retriever.vectors.float32(0, retriever.vectors.count).astype(np.float64)
    same, worst = 0, 0.0
    for query_D, found_k in zip(query_BD, found_Bk):
        score_N = vector_ND @ query_D
        best_k = np.argsort(-score_N, kind="stable")[: args.k]
        if np.array_equal(best_k, found_k):
            same += 1
        else:
            worst = max(worst, float(np.max(np.abs(score_N[best_k] - score_N[found_k]))))
    # Another process may still ask this one for its part until here.
    told = gather((same, len(queries), worst))
    print(
        f"{len(retriever):,} passages on {len(told)} processes of {args.devices} devices: the same "
        f"{args.k} in the same order for {sum(one[0] for one in told)} of "
        f"{sum(one[1] for one in told)} questions; in the others scores differ by "
        f"{max(one[2] for one in told):.1e} at most",
        flush=True,
    )


if __name__ == "__main__":
    main()

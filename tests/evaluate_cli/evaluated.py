"""A run to evaluate, whose policy and engine are stand-ins."""

import json
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from sr1_jax import evaluate
from sr1_jax.retrieval.base import Passage
from sr1_jax.rewards import Reward
from sr1_jax.rewards.settings import REWARD
from sr1_jax.training.checkpoints import RunCheckpoints
from sr1_jax.training.same_settings import as_json_values
from sr1_jax.training.settings import RUN

CONFIG = Path(__file__).parents[1] / "training" / "tiny_config.py"


def write_questions(path, count, source="nq", start=0):
    rows = (
        {"id": f"{source}:dev:{i}", "question": f"Who {i}?", "golden_answers": ["Bo"]}
        for i in range(start, start + count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Searched:
    """Stands for a retriever."""

    def __init__(self, fingerprint="corpus-1"):
        self.fingerprint = fingerprint


class World:
    """Files, a run with checkpoints, and what the stand-ins were asked."""

    def __init__(self, folder, make_trajectory, tokenizer):
        self.folder, self.workdir = folder, folder / "run"
        self._make, self.tokenizer = make_trajectory, tokenizer
        self.loaded, self.engines, self.asked = [], [], []
        self.retriever = Searched()
        self.stop_at = self.kill_after = None
        self.finished, self.lucky = [], False
        write_questions(folder / "nq.jsonl", 8)
        write_questions(folder / "hp.jsonl", 4, "hp")
        (folder / "corpus.jsonl").write_text('{"id": "0", "contents": "A\\nB"}\n')

    def trained_policy(self, config, workdir, mesh, *, base=False, step=None, merge=True):
        self.loaded.append((base, step))
        return (
            nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
            self.tokenizer,
            f"step {step}" if step else "base",
        )

    def make_engine(self, policy, tokenizer, retriever, config, method, *, greedy, mesh):
        self.engines.append((retriever, method, greedy))
        return self

    def run(self, questions, seed, samples, params, finished, skip):
        """Every question whose number divides by 4 is answered, by rag every other one; with luck
        the last of several samples of the next one, too."""
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append((len(questions), seed, samples))
        method = self.engines[-1][1]
        self.stats = {"seconds": 2.0, "episodes": len(questions) * samples}
        run = []
        for question in questions:
            number = int(question.id.rsplit(":", 1)[1])
            for sample in range(samples):
                if (question.id, sample) in skip:
                    continue
                if len(self.finished) == self.kill_after:
                    raise KeyboardInterrupt
                luck = self.lucky and sample == samples - 1
                right = number % (2 if method == "rag" else 4) <= luck
                trajectory = self._make(
                    question_id=question.id,
                    sample=sample,
                    answer="Bo" if right else None,
                    golden_answers=question.golden_answers,
                    passages=[] if method == "direct" else [[Passage("0", "Bo", "x", 1.0)]],
                )
                self.finished.append((method, question.id, sample))
                finished(trajectory, question)
                run.append(trajectory)
        return Reward(REWARD.defaults(), 9).score(run, run)

    def checkpoints(self, *steps, config=None, contents=None, scores=None):
        config = config or default_config_of(CONFIG)
        facts = {
            "config": RUN.without_free(as_json_values(config.to_dict())),
            "contents": contents or {"data.corpus": "corpus-1"},
            "position": 0,
        }
        with RunCheckpoints(self.workdir / "checkpoints", keep=5) as checkpoints:
            for step in steps:
                score = (scores or {}).get(step)
                checkpoints.save(step, {"x": jnp.zeros(1)}, facts, score=score)

    def argv(self, *arguments, questions="{tmp}/nq.jsonl", method="search"):
        argv = [
            f"--config={CONFIG}", "--workdir={tmp}/run", f"--questions={questions}",
            f"--method={method}", *arguments,
        ]  # fmt: skip
        if method != "direct":
            argv.append("--corpus={tmp}/corpus.jsonl")
        return ["evaluate", *(argument.format(tmp=self.folder) for argument in argv)]

    def evaluate(self, *arguments, **options):
        evaluate.main(self.argv(*arguments, **options))
        return self.results()

    def results(self):
        """Results by file name."""
        files = (self.workdir / "eval").glob("*.json")
        return {path.name: json.loads(path.read_text()) for path in sorted(files)}


def default_config_of(path):
    import importlib.util

    spec = importlib.util.spec_from_file_location("tiny", path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.get_config()

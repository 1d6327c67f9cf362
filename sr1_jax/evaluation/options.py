"""How an evaluation is run, as its flags say it."""

from __future__ import annotations

from typing import NamedTuple

from sr1_jax.evaluation.methods import check_method

# The method whose correct episodes are kept as examples.
REJECTION = "rejection"


class Options(NamedTuple):
    """How an evaluation is run.

    Attributes:
        method: how questions are answered; several with commas.
        limit: first so many questions of a file; 0: all.
        base: the policy that training starts from, whatever was trained since.
        greedy: instead of sampling.
        samples: episodes a question.
        step: of the checkpoint, or "best"; None: the newest.
        judge: address of an OpenAI-compatible API whose model judges answers; "": none is asked.
        judge_model: name of the model there.
        judge_key_variable: environment variable that holds the key of that API; "": it needs none.
        examples: file for the correct episodes of all questions, as examples to imitate; "": none.
    """

    method: str = "search"
    limit: int = 0
    base: bool = False
    greedy: bool = True
    samples: int = 1
    step: int | str | None = None
    judge: str = ""
    judge_model: str = ""
    judge_key_variable: str = ""
    examples: str = ""

    @property
    def methods(self) -> list[str]:
        """How questions are answered, one after the other."""
        return self.method.split(",")

    def keeps_examples(self, method: str) -> bool:
        """Whether the correct episodes of a method are written."""
        return method == REJECTION or bool(self.examples)

    def check(self) -> None:
        """Refuses what cannot be run.

        Raises:
            ValueError: naming flag and value.
        """
        for method in self.methods:
            try:
                check_method(method)
            except ValueError as error:
                raise ValueError(f"--method={self.method}: {error}") from error
            if self.methods.count(method) > 1:
                raise ValueError(f"--method={self.method}: {method} is named twice.")
        if self.limit < 0:
            raise ValueError(f"--limit must not be negative, not {self.limit}; 0 stands for all.")
        if self.samples < 1:
            raise ValueError(f"--samples must be at least 1, not {self.samples}.")
        if self.samples > 1 and self.greedy:
            raise ValueError(
                f"--samples={self.samples}: greedy decoding gives the same every time; add "
                "--greedy=false."
            )
        if REJECTION in self.methods and self.greedy:
            raise ValueError(
                f"--method={REJECTION} keeps correct samples: add --greedy=false and --samples=5."
            )
        if self.examples and len(self.methods) > 1:
            raise ValueError("--examples takes the episodes of one method: name one by --method.")
        self._check_judge()

    def _check_judge(self) -> None:
        if self.judge and not self.judge_model:
            raise ValueError(f"--judge={self.judge}: name the model to ask there by --judge_model.")
        for flag in ("judge_model", "judge_key_variable"):
            if getattr(self, flag) and not self.judge:
                raise ValueError(
                    f"--{flag}={getattr(self, flag)}: --judge is missing, the address of its API."
                )

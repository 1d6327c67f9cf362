"""Examples to imitate: files of them, answers to questions, and supervised training on both."""

import json
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from sr1_jax.data.questions import Question
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.protocol.prompts import load_template
from sr1_jax.sharding import make_mesh
from sr1_jax.train import train
from sr1_jax.training import base, resume
from sr1_jax.training.examples import answer_examples, check_examples, read_examples
from sr1_jax.training.phases import phases_of
from sr1_jax.training.policies import trained_policy
from sr1_jax.training.supervised import Example, SupervisedTrainer, supervised_batches


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Files


def test_exact_tokens_are_taken_as_they_are(small_tokenizer, tmp_path):
    row = {"id": "nq:1", "ids": [5, 6, 7], "mask": [0, 1, 1], "reward": 1.0}
    other = {"ids": [9, 9], "mask": [0, 1], "spans": "not looked at"}
    found = read_examples([write(tmp_path / "a.jsonl", row, other)], small_tokenizer)
    assert found == [Example([5, 6, 7], [0, 1, 1]), Example([9, 9], [0, 1])]


def test_spans_are_encoded_each_by_who_wrote_it(small_tokenizer, tmp_path):
    """Special tokens mean themselves in the prompt and in the policy's words, and are plain text in
    what a tool answered."""
    end = small_tokenizer.encode_trusted("<|end|>")
    spans = [
        [0, "<|im_start|>Who?"],
        [1, "<search>Bob</search>"],
        [0, "Doc <|end|>"],
        [1, "a<|end|>"],
    ]
    (found,) = read_examples([write(tmp_path / "a.jsonl", {"spans": spans})], small_tokenizer)
    parts = [
        small_tokenizer.encode_trusted("<|im_start|>Who?"),
        small_tokenizer.encode("<search>Bob</search>"),
        small_tokenizer.encode("Doc <|end|>"),
        [*small_tokenizer.encode("a"), *end],
    ]
    assert found.ids == [number for part in parts for number in part]
    assert found.mask == [value for value, part in zip((0, 1, 0, 1), parts) for _ in part]
    assert found.ids.count(end[0]) == 1


def test_where_a_span_is_cut_does_not_decide_its_tokens(small_tokenizer, tmp_path):
    whole = {"spans": [[0, "Question: "], [1, "the mayor of Paris"]]}
    cut = {"spans": [[0, "Quest"], [0, "ion: "], [1, "the may"], [1, "or of Paris"]]}
    one, other = read_examples([write(tmp_path / "a.jsonl", whole, cut)], small_tokenizer)
    assert one == other


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "q"}, "needs ids and mask, or spans"),
        ({"ids": [1, 2], "mask": [1]}, "lists of one length"),
        ({"ids": [1, 2]}, "lists of one length"),
        ({"ids": [1, 999_999], "mask": [0, 1]}, "id 999999 is none of the tokenizer's 0 to"),
        ({"ids": [1, True], "mask": [0, 1]}, "id True is none"),
        ({"ids": [1, 2], "mask": [0, 0.5]}, "mask must hold 0 and 1 alone"),
        ({"ids": [1, 2], "mask": [1, 0]}, "its mask is 0 throughout"),  # the first has no log-prob
        ({"spans": [[0, "a"]]}, "its mask is 0 throughout"),
        ({"spans": [[2, "a"]]}, r"spans must be a list of \[0 or 1, text\]"),
        ({"spans": "a"}, r"spans must be a list of \[0 or 1, text\]"),
    ],
)
def test_a_bad_line_is_named(row, message, small_tokenizer, tmp_path):
    good = {"ids": [1, 2], "mask": [0, 1]}
    path = write(tmp_path / "a.jsonl", good, row)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}:2: .*{message}"):
        read_examples([path], small_tokenizer)


def test_an_empty_file_is_refused(small_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no examples; the file is empty"):
        read_examples([write(tmp_path / "a.jsonl")], small_tokenizer)


def test_answers_are_the_prompt_and_the_first_golden_answer(small_tokenizer):
    template = load_template("direct")
    question = Question("q:1", "Who is the mayor of Paris?", (" Bob ", "Robert"))
    (found,) = answer_examples([question], template, small_tokenizer)
    prompt = template.render(small_tokenizer, question.question)
    answer = small_tokenizer.encode("<answer> Bob </answer>")
    assert found == Example(prompt + answer, [0] * len(prompt) + [1] * len(answer))


# Phases

PHASE = dict(name="a", learning_rate=1e-3, steps=2)


def test_a_phase_says_what_it_imitates():
    files = phases_of([PHASE | {"examples": "a.jsonl,b.jsonl"}])[0].files
    assert [path.name for path in files] == ["a.jsonl", "b.jsonl"]
    assert phases_of([PHASE | {"examples": "answers"}])[0].files == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"has no 'traces', and no examples"),
        ({"traces": 0, "mix": {}}, r"traces must be at least 1, not 0"),
        ({"examples": "a.jsonl", "mix": {}}, r"mix is an option of the task's traces"),
        ({"examples": "a.jsonl", "epochs": 2.0}, r"needs steps or epochs, above 0, and not both"),
        ({"examples": "a.jsonl", "steps": 0}, r"needs steps or epochs, above 0, and not both"),
        ({"examples": "s3://bucket/a.jsonl"}, r"s3://bucket/a\.jsonl"),
    ],
)
def test_a_phase_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        for phase in phases_of([PHASE | change]):
            phase.files  # noqa: B018


def test_epochs_become_steps():
    (phase,) = phases_of([dict(name="a", learning_rate=1e-3, epochs=2.5, examples="answers")])
    assert [phase.steps_for(n, 8) for n in (8, 9, 80, 1)] == [3, 3, 25, 1]


def test_missing_files_and_methods_that_search_are_refused(tiny_config, tmp_path):
    tiny_config.warm_start.phases = (PHASE | {"examples": str(tmp_path / "no.jsonl")},)
    with pytest.raises(ValueError, match=r"there is no file .*no\.jsonl"):
        check_examples(tiny_config)
    tiny_config.warm_start.phases = (PHASE | {"examples": "answers"},)
    with pytest.raises(ValueError, match="method='search' calls tools: set method=direct"):
        check_examples(tiny_config)


# Batches: nothing is left out for good


@pytest.mark.parametrize("lengths", [[3] * 7 + [7] * 3 + [11] * 2, [3] * 2 + [11] * 6, [7] * 5])
def test_every_example_comes_although_few_fill_no_batch(lengths):
    examples = [Example([100 + n] * size, [0] + [1] * (size - 1)) for n, size in enumerate(lengths)]
    batches = supervised_batches(examples, batch=4, buckets=(4, 8, 12), pad_id=0, seed=0)
    seen = set()
    for _ in range(60):
        ids_BT, _ = next(batches)
        seen |= set(ids_BT[:, 0].tolist())
    assert seen == set(range(100, 100 + len(lengths)))


# Training


@pytest.fixture(scope="module")
def model():
    config = DecoderConfig(
        vocab_size=24, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff_width=16,
        tied_embeddings=False,
    )  # fmt: skip
    return Decoder(config, rngs=nnx.Rngs(2))


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_micro_batches_give_the_gradient_of_the_batch(model, optimizer):
    """Rows with few and with many learned tokens: a mean of means would differ."""
    rng = np.random.default_rng(0)
    ids_BT = rng.integers(0, 24, (8, 12)).astype(np.int32)
    mask_BT = (np.arange(12)[None] >= np.array([[2, 11, 5, 9, 3, 8, 10, 1]]).T).astype(np.float32)
    mesh = make_mesh(2, 1, 1, devices=jax.devices()[:2])
    states, losses = [], []
    for micro_batch in (0, 2, 8):
        trainer = SupervisedTrainer(
            model, mesh, schedule=optax.constant_schedule(1e-2), optimizer=optimizer,
            micro_batch=micro_batch,
        )  # fmt: skip
        losses.append([float(trainer.step(ids_BT, mask_BT)) for _ in range(3)])
        states.append(trainer.state.params)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), states[0], states[1])


def test_adam_is_adam(model):
    """The first step of Adam moves every parameter that has a gradient by the learning rate."""
    trainer = SupervisedTrainer(
        model, make_mesh(1, 1, 1, jax.devices()[:1]), schedule=optax.constant_schedule(1e-3),
        optimizer="adam",
    )  # fmt: skip
    before = jax.tree.map(np.asarray, trainer.state.params)
    trainer.step(np.arange(24, dtype=np.int32).reshape(2, 12), np.ones((2, 12), np.float32))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b), trainer.state.params, before)
    largest = max(float(x.max()) for x in jax.tree.leaves(moved))
    assert largest == pytest.approx(1e-3, rel=1e-2)


# Runs


def test_a_run_learns_from_files_and_goes_on_after_a_kill(
    derived, tmp_path, monkeypatch, equal_trees
):
    """The same parameters as without a break, though the break fell between two checkpoints."""
    row = {"spans": [[0, "Question: where?"], [1, "<answer> here </answer>"]]}
    path = write(
        tmp_path / "examples.jsonl", *[row] * 8, *[{"ids": [3, 4, 5], "mask": [0, 1, 1]}] * 8
    )
    derived.steps = 0
    derived.warm_start.phases = (
        dict(name="first", examples=str(path), epochs=1.5, learning_rate=1e-2),
        dict(name="second", examples=str(path), steps=4, traces=9, learning_rate=1e-3),
    )
    derived.warm_start.length_buckets = (32, 64)
    derived.warm_start.checkpoint_every = 2
    train(derived, tmp_path / "whole")

    steps = []
    step = SupervisedTrainer.step

    def failing(self, *batch):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            train(derived, tmp_path / "cut")
    assert (tmp_path / "cut" / "supervised_checkpoints").is_dir()
    derived.warm_start.batch = 16
    with pytest.raises(
        ValueError, match=r"holds supervised training made with warm_start\.batch=8"
    ):
        train(derived, tmp_path / "cut")
    derived.warm_start.batch = 8

    def counting(self, *batch):
        steps.append(1)
        return step(self, *batch)

    monkeypatch.setattr(SupervisedTrainer, "step", counting)
    train(derived, tmp_path / "cut")
    # 3 steps of the first phase and 4 of the second; the sixth call failed, the fifth was saved.
    assert len(steps) == 6 + 2
    assert not (tmp_path / "cut" / "supervised_checkpoints").exists()
    one, other = (
        trained_policy(derived, tmp_path / name, make_mesh()) for name in ("whole", "cut")
    )
    assert one[2] == other[2] == "supervised"
    equal_trees(nnx.state(one[0]), nnx.state(other[0]))


def test_sft_on_the_golden_answers(derived, tmp_path):
    """The paper's SFT needs no traces: the training questions are enough."""
    derived.steps, derived.method = 0, "direct"
    derived.warm_start.phases = (
        dict(name="sft", examples="answers", traces=32, steps=3, learning_rate=1e-2),
    )
    derived.warm_start.length_buckets = (64, 128)
    derived.evaluation.final_questions = 4
    result = train(derived, tmp_path / "sft")
    assert [one["step"] for one in result["supervised"]] == [3]
    derived.warm_start.phases = (derived.warm_start.phases[0] | {"traces": 10**6},)
    with pytest.raises(ValueError, match=r"traces=1000000, but there are only \d+ examples"):
        train(derived, tmp_path / "other")


def test_other_contents_of_a_file_are_another_training(derived, tmp_path):
    path = write(tmp_path / "a.jsonl", *[{"ids": [3, 4, 5], "mask": [0, 1, 1]}] * 8)
    derived.steps = 0
    derived.warm_start.phases = (dict(name="a", examples=str(path), steps=1, learning_rate=1e-3),)
    train(derived, tmp_path / "run")
    write(path, *[{"ids": [3, 4, 6], "mask": [0, 1, 1]}] * 8)
    with pytest.raises(ValueError, match="files of examples"):
        train(derived, tmp_path / "run")


def test_what_was_tuned_from_another_base_is_not_taken_up(derived, tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", *[{"ids": [3, 4, 5], "mask": [0, 1, 1]}] * 8)
    derived.steps = 0
    derived.warm_start.phases = (dict(name="a", examples=str(path), steps=1, learning_rate=1e-3),)
    train(derived, tmp_path / "run")
    fingerprint = resume.weights_fingerprint
    monkeypatch.setattr(resume, "weights_fingerprint", lambda path: f"not {fingerprint(path)}")
    with pytest.raises(ValueError, match=r"made with weights\.base="):
        train(derived, tmp_path / "run")


def test_a_run_killed_while_its_result_is_written_has_its_checkpoints(
    derived, tmp_path, monkeypatch
):
    path = write(tmp_path / "a.jsonl", *[{"ids": [3, 4, 5], "mask": [0, 1, 1]}] * 8)
    derived.steps, derived.warm_start.checkpoint_every = 0, 1
    derived.warm_start.phases = (dict(name="a", examples=str(path), steps=3, learning_rate=1e-3),)
    with monkeypatch.context() as patch:
        patch.setattr(base, "save_base", None)
        with pytest.raises(TypeError):
            train(derived, tmp_path / "run")
    assert (tmp_path / "run" / "supervised_checkpoints").is_dir()
    monkeypatch.setattr(SupervisedTrainer, "step", None)  # all steps are done
    train(derived, tmp_path / "run")
    assert not (tmp_path / "run" / "supervised_checkpoints").exists()


def test_supervised_training_of_adapters(derived, tmp_path, equal_trees, monkeypatch):
    """Adapters alone change, are written as a folder of peft, and start another run."""
    rows = [{"spans": [[0, "Question: where?"], [1, "<answer> here </answer>"]]}] * 8
    path = write(tmp_path / "examples.jsonl", *rows)
    derived.steps, derived.lora.rank = 0, 2
    derived.warm_start.phases = (dict(name="a", examples=str(path), steps=6, learning_rate=1e-2),)
    derived.warm_start.length_buckets = (32, 64)
    derived.evaluation.final_questions = 4
    result = train(derived, tmp_path / "run")
    mesh = make_mesh()
    tuned, tokenizer, what = trained_policy(derived, tmp_path / "run", mesh)
    assert what == "supervised" and tuned.config.lora is None
    base, _, _ = trained_policy(derived, tmp_path / "run", mesh, base=True)
    moved = [
        jax.tree_util.keystr(key)
        for (key, a), b in zip(
            jax.tree_util.tree_leaves_with_path(nnx.state(tuned)), jax.tree.leaves(nnx.state(base))
        )
        if (a != b).any()
    ]
    assert moved and all("layers" in key and "kernel" in key for key in moved)
    (example,) = read_examples([path], tokenizer)[:1]
    own = np.array(example.mask, bool)[1:]

    def loss(model):
        logp_TV = jax.nn.log_softmax(model(np.array([example.ids]))[0], axis=-1)
        picked = logp_TV[np.arange(len(example.ids) - 1), example.ids[1:]]
        return -float(picked[own].mean())

    assert loss(tuned) < loss(base) - 0.5
    # Started again, it is read back.
    monkeypatch.setattr(SupervisedTrainer, "step", None)
    assert train(derived, tmp_path / "run")["after"] == result["after"]
    monkeypatch.undo()
    # Another run starts from them.
    adapter = tmp_path / "run" / "supervised" / "adapter"
    derived.warm_start.phases, derived.lora.rank = (), 0
    derived.lora.path = str(adapter)
    start, _, _ = trained_policy(derived, tmp_path / "other", mesh, base=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        nnx.state(start),
        nnx.state(tuned),
    )


def test_imitation_and_reinforcement_of_adapters_are_two_runs(derived, tmp_path):
    path = write(tmp_path / "a.jsonl", {"ids": [3, 4, 5], "mask": [0, 1, 1]})
    derived.lora.rank = 2
    derived.warm_start.phases = (dict(name="a", examples=str(path), steps=1, learning_rate=1e-3),)
    with pytest.raises(ValueError, match=r"run it twice, with steps=0 first"):
        train(derived, tmp_path / "run")

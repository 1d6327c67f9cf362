"""Search-R1 in JAX: language models that learn, by reinforcement, to reason and to search."""

__version__ = "0.1.0"

"""Scores of pairs of texts on devices, in batches of one size and a few lengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tokenizers
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr1_jax.models.cross_encoder_folder import PairModel
from sr1_jax.retrieval.embedder import lengths_up_to
from sr1_jax.sharding import MESH_AXES

_LEAST_LENGTH = 32  # that pairs are padded to: shorter ones are rare
# Of a passage at least, or its score says nothing.
_LEAST_PASSAGE_TOKENS = 16


class Scored(NamedTuple):
    """Scores of pairs.

    Attributes:
        score_N: float32; NaN of a pair whose query is so long that no passage fits behind it.
        cut: of how many passages the end was left out, because the pair was too long.
    """

    score_N: np.ndarray
    cut: int


class PairTokens:
    """Pairs as the sequences that a cross-encoder reads.

    A passage that is too long loses its end. A query is never cut.

    Args:
        model: of which tokenizer and length count.

    Attributes:
        lengths: that pairs are padded to, increasing.
        longest: tokens of a pair, the last of `lengths`.
        longest_query: tokens of a query that leaves room for a passage.
    """

    def __init__(self, model: PairModel):
        self._typed, self._whole = model.typed, model.tokenizer
        # Cutting is a state of a tokenizer: queries have one that never cuts.
        self._tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.to_str())
        special = self._tokenizer.num_special_tokens_to_add(True)
        self.longest = model.max_tokens
        self.lengths = lengths_up_to(self.longest, least=_LEAST_LENGTH)
        self.longest_query = self.longest - special - _LEAST_PASSAGE_TOKENS
        if self.longest_query < 1:
            raise ValueError(
                f"retrieval.rerank.max_tokens={self.longest} leaves no room for a query beside "
                f"{special} special tokens and {_LEAST_PASSAGE_TOKENS} of a passage; raise it."
            )
        # By the tokenizer, which tells what it cuts; encoding is safe in several threads at once.
        self._tokenizer.enable_truncation(self.longest, strategy="only_second")

    def fits(self, queries: Sequence[str]) -> list[bool]:
        """Whether a passage has room behind each query."""
        encoded = self._whole.encode_batch(list(queries), add_special_tokens=False)
        return [len(each.ids) <= self.longest_query for each in encoded]

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[tokenizers.Encoding]:
        """Of each (query, passage), whose query `fits`; `overflowing` says what was cut."""
        return self._tokenizer.encode_batch(list(pairs))

    def padded(
        self, encoded: Sequence[tokenizers.Encoding], rows: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids_BT, length_B and type_BT, int32, of pairs padded to `rows` rows of `length`."""
        ids_BT, type_BT = np.zeros((2, rows, length), np.int32)
        # A row of padding reads one token, so that its numbers are finite.
        length_B = np.ones(rows, np.int32)
        for row, each in enumerate(encoded):
            length_B[row] = len(each.ids)
            ids_BT[row, : len(each.ids)] = each.ids
            if self._typed:
                type_BT[row, : len(each.ids)] = each.type_ids
        return ids_BT, length_B, type_BT


class PairScorer:
    """A cross-encoder on the devices of a mesh.

    Every device has all weights and a share of each batch. The program of each length is compiled
    here, before the first search; later none is. A pair goes into the batches of its own length,
    so that its score does not depend on what else is scored.

    Args:
        model: as it was read.
        mesh: its devices share each batch.
        batch: pairs; rounded up to what the devices share evenly.

    Raises:
        ValueError: the model's length has no room for a query.
    """

    def __init__(self, model: PairModel, mesh: Mesh, batch: int):
        self.fingerprint, self._path = model.fingerprint, model.path
        self.tokens = PairTokens(model)
        self._batch = -(-batch // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec(MESH_AXES))
        self._params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
        score = jax.jit(model.score, out_shardings=self._rows)
        self._programs = {
            length: score.lower(self._params, *self._shapes(length)).compile()
            for length in self.tokens.lengths
        }

    def _shapes(self, length: int) -> list[jax.ShapeDtypeStruct]:
        sizes = ((self._batch, length), (self._batch,), (self._batch, length))
        return [jax.ShapeDtypeStruct(size, np.int32, sharding=self._rows) for size in sizes]

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        """Scores of (query, passage).

        Raises:
            FloatingPointError: the model gives some that are not finite.
        """
        score_N = np.full(len(pairs), np.nan, np.float32)
        queries = list(dict.fromkeys(query for query, _ in pairs))
        fits = dict(zip(queries, self.tokens.fits(queries)))
        places = [place for place, (query, _) in enumerate(pairs) if fits[query]]
        encoded = self.tokens.encode([pairs[place] for place in places])
        # All are started before the first is waited for.
        started = [
            (rows, self._start(length, [encoded[row] for row in rows]))
            for length, rows in self._split([len(each.ids) for each in encoded])
        ]
        for rows, scores in started:
            score_N[[places[row] for row in rows]] = np.asarray(scores)[: len(rows)]
        if not np.isfinite(score_N[places]).all():
            raise FloatingPointError(
                f"{self._path}: the cross-encoder gives scores that are not finite; set "
                "retrieval.rerank.dtype=float32, or look at its weights."
            )
        return Scored(score_N, sum(bool(each.overflowing) for each in encoded))

    def _split(self, sizes: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """(length, rows) of each batch."""
        length_of = [next(length for length in self._programs if length >= n) for n in sizes]
        order = sorted(range(len(sizes)), key=length_of.__getitem__)
        for length, rows in itertools.groupby(order, key=length_of.__getitem__):
            rows = list(rows)
            for first in range(0, len(rows), self._batch):
                yield length, rows[first : first + self._batch]

    def _start(self, length: int, encoded: Sequence[tokenizers.Encoding]) -> jax.Array:
        batch = self.tokens.padded(encoded, self._batch, length)
        return self._programs[length](self._params, *jax.device_put(batch, self._rows))

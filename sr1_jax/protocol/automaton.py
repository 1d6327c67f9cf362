"""The tag automaton: finds stop strings in sampled tokens, however a tokenizer splits them.

A byte-level Aho-Corasick automaton (Aho & Corasick 1975) over the stop strings is lifted to the
vocabulary once per tokenizer: `next_state[state, token]` is where the automaton stands after
all bytes of the token. Decoding follows it with one table look-up a token, on device, and a
tag is found also when it starts or ends inside a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class TagAutomaton:
    """A deterministic automaton over token ids.

    Attributes:
        next_state: int32 [states, V]. State 0 is the start; the last `len(stops)` states are
            final and absorbing.
        stops: what each final state means: a stop string, or `END_OF_TEXT`.
        by_byte: int [states, 256], the same for single bytes.
    """

    next_state: np.ndarray
    stops: tuple[str, ...]
    by_byte: np.ndarray

    END_OF_TEXT = "<end of text>"

    @property
    def first_final(self) -> int:
        """States from this one on are final."""
        return self.next_state.shape[0] - len(self.stops)

    def stop(self, state: int) -> str | None:
        """The stop string found, `END_OF_TEXT`, or None while nothing was found."""
        return self.stops[state - self.first_final] if state >= self.first_final else None

    def run(self, ids: Sequence[int], state: int = 0) -> int:
        """The state after `ids`, on the host."""
        for token in ids:
            state = int(self.next_state[state, token])
        return state

    def after(self, text: bytes) -> int:
        """The state after a text, from the start: where to go on behind a stop that is let pass."""
        state = 0
        for byte in text:
            state = int(self.by_byte[state, byte])
        return state


def build_automaton(
    token_bytes: Sequence[bytes], eos_ids: Sequence[int], stop_strings: Sequence[str]
) -> TagAutomaton:
    """Builds the automaton of a vocabulary.

    Args:
        token_bytes: bytes each token adds to the text, indexed by id (V entries).
        eos_ids: tokens that end the text whatever came before.
        stop_strings: non-empty strings to find; where two end at one byte the longer counts.

    Raises:
        ValueError: a stop string is empty or given twice.
    """
    stops = [stop.encode() for stop in stop_strings]
    if not all(stops) or len(set(stops)) != len(stops):
        raise ValueError(f"Stop strings must be non-empty and distinct, not {stop_strings!r}.")
    step, found = _byte_automaton(stops)
    inner = len(step)
    # Final states: one a stop string, then end-of-text; rows of their own, absorbing.
    final_of_state = np.where(found >= 0, inner + found, np.arange(inner))
    finals = np.arange(inner, inner + len(stops) + 1)
    by_byte = np.concatenate([final_of_state[step], np.repeat(finals[:, None], 256, axis=1)])

    lengths_V = np.array([len(b) for b in token_bytes])
    padded = np.zeros((len(token_bytes), max(1, lengths_V.max())), np.uint8)
    for token, text in enumerate(token_bytes):
        padded[token, : len(text)] = np.frombuffer(text, np.uint8)
    next_state = np.repeat(np.arange(len(by_byte), dtype=np.int32)[:, None], len(token_bytes), 1)
    for position in range(padded.shape[1]):
        tokens = np.nonzero(lengths_V > position)[0]
        next_state[:, tokens] = by_byte[next_state[:, tokens], padded[None, tokens, position]]
    next_state[:inner, list(eos_ids)] = finals[-1]
    return TagAutomaton(next_state, (*stop_strings, TagAutomaton.END_OF_TEXT), by_byte)


def _byte_automaton(stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Aho-Corasick: step[state, byte] and found[state], the stop that ends there or -1."""
    children: list[dict[int, int]] = [{}]
    found = [-1]
    for index, stop in enumerate(stops):
        state = 0
        for byte in stop:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                found.append(-1)
            state = children[state][byte]
        found[state] = index
    step = np.zeros((len(children), 256), np.int64)
    failure = [0] * len(children)
    queue = [0]
    for state in queue:  # breadth first: a failure link always leads to a shallower state
        if state:
            step[state] = step[failure[state]]
            if found[state] < 0:
                found[state] = found[failure[state]]
        for byte, child in children[state].items():
            failure[child] = int(step[state, byte]) if state else 0
            step[state, byte] = child
            queue.append(child)
    return step, np.array(found)

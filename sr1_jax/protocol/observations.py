"""What comes back from a search, as tokens: escaped, within a budget, always closed."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence

from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.tags import INFORMATION, TAG_NAMES, close_tag, open_tag
from sr1_jax.retrieval.base import Passage

_TAG_LIKE = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(TAG_NAMES)})\s*>)", re.IGNORECASE)
_OPEN = f"\n{open_tag(INFORMATION)}\n"
_CLOSE = f"{close_tag(INFORMATION)}\n"

# Shown after a segment that neither searched nor answered. No tags in it: the whole response
# stays parseable by eye and by `extract_answer`.
CORRECTION = (
    "\nThat was neither a search nor an answer. Put a query between search tags, "
    "or the final answer between answer tags.\n"
)
NOTHING_FOUND = "Nothing was found."


def escape(text: str) -> str:
    """Retrieved text made harmless: no protocol tag in it, no control characters, one line."""
    # Control and format characters go first, so that none can hide inside a tag.
    kept = "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    return _TAG_LIKE.sub("&lt;", " ".join(kept.split()))


def render_observation(
    passages: Sequence[Passage], tokenizer: Tokenizer, max_tokens: int
) -> list[int]:
    """Token ids of `<information>…</information>` around the passages, one a line.

    Passages are cut from the end when they do not fit; both tags always stand. The text is
    encoded as plain text, so that nothing in it becomes a special token.

    Args:
        passages: what the retriever returned; may be empty.
        tokenizer: of the policy.
        max_tokens: most ids to return.

    Raises:
        ValueError: `max_tokens` cannot hold the two tags and one token.
    """
    head, tail = tokenizer.encode(_OPEN), tokenizer.encode(_CLOSE)
    room = max_tokens - len(head) - len(tail)
    if room < 1:
        raise ValueError(
            f"An observation of {max_tokens} tokens cannot hold its tags "
            f"({len(head) + len(tail)} tokens) and any text; raise max_observation_tokens."
        )
    # No token is longer than this many bytes, so what lies beyond cannot fit: megabytes of
    # text are cut before they are tokenised.
    body = tokenizer.encode(_render_passages(passages, room * tokenizer.longest_token))
    return head + _cut(body, room, tokenizer) + tail


def merge_passages(passages: Sequence[Sequence[Passage]]) -> list[Passage]:
    """The passages of several queries as those of one: the best of each, then the second best,
    and so on, each passage once. So a budget that cuts the end cuts no query off whole."""
    merged: dict[str, Passage] = {}
    for rank in range(max(map(len, passages), default=0)):
        for found in passages:
            if rank < len(found):
                merged.setdefault(found[rank].id, found[rank])
    return list(merged.values())


def _render_passages(passages: Sequence[Passage], max_characters: int) -> str:
    lines = [
        f"Doc {rank}(Title: {escape(p.title[:max_characters])}) {escape(p.text[:max_characters])}\n"
        for rank, p in enumerate(passages, start=1)
    ]
    return "".join(lines)[:max_characters] or NOTHING_FOUND + "\n"


def _cut(ids: list[int], room: int, tokenizer: Tokenizer) -> list[int]:
    """The first `room` ids, less a character whose bytes would be cut apart."""
    if len(ids) <= room:
        return ids
    ids = ids[:room]
    while ids and not _ends_on_character(b"".join(map(tokenizer.token_bytes.__getitem__, ids))):
        ids = ids[:-1]
    return ids


def _ends_on_character(text: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return not decoder.getstate()[0]  # bytes it keeps, waiting for the rest of a character

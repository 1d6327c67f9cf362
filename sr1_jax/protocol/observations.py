"""What comes back from a tool, as tokens: escaped, within a budget, always closed."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence

from sr1_jax.models.tokenizer import Tokenizer
from sr1_jax.protocol.tags import SEARCH_TAGS, Tags, close_tag, open_tag
from sr1_jax.retrieval.base import Passage

NOTHING_FOUND = "Nothing was found."


def escape(text: str, tags: Tags = SEARCH_TAGS) -> str:
    """Untrusted text made harmless: no protocol tag in it, no control characters, one line."""
    # Control and format characters go first, so that none can hide inside a tag.
    kept = "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    return tags.lookalike.sub("&lt;", " ".join(kept.split()))


def render_observation(
    passages: Sequence[Passage], tokenizer: Tokenizer, max_tokens: int, tags: Tags = SEARCH_TAGS
) -> list[int]:
    """Token ids of `<information>…</information>` around the passages, one a line.

    Args:
        passages: what the retriever returned; may be empty.
        tokenizer: of the policy.
        max_tokens: most ids to return.
        tags: of the run; those of its first tool stand around the passages.

    Raises:
        ValueError: `max_tokens` cannot hold the two tags and one token.
    """
    tag = tags.tools[0].observation_tag
    return render_text(passages_as_text(passages), tag, tokenizer, max_tokens, tags)


def render_text(
    text: str, observation_tag: str, tokenizer: Tokenizer, max_tokens: int, tags: Tags = SEARCH_TAGS
) -> list[int]:
    """Token ids of an observation.

    The text is escaped line by line and cut from the end where it does not fit; both tags always
    stand. It is encoded as plain text, so that nothing in it becomes a special token.

    Args:
        text: untrusted; a blank one is rendered as `NOTHING_FOUND`.
        observation_tag: the tag around it.
        tokenizer: of the policy.
        max_tokens: most ids to return.
        tags: of the run: none of them survives in the text.

    Raises:
        ValueError: `max_tokens` cannot hold the two tags and one token.
    """
    head = tokenizer.encode(f"\n{open_tag(observation_tag)}\n")
    tail = tokenizer.encode(f"{close_tag(observation_tag)}\n")
    room = max_tokens - len(head) - len(tail)
    if room < 1:
        raise ValueError(
            f"An observation of {max_tokens} tokens cannot hold its tags "
            f"({len(head) + len(tail)} tokens) and any text; raise max_observation_tokens."
        )
    # No token is longer than this many bytes, so what lies beyond cannot fit: megabytes of
    # text are cut before they are tokenised.
    body = _escaped_lines(text, room * tokenizer.longest_token, tags)
    return head + _first_ids(tokenizer.encode(body), room, tokenizer) + tail


def passages_as_text(passages: Sequence[Passage]) -> str:
    """Passages as the model sees them, one a line, before they are escaped.

    What is a line here stays one: a line break inside a passage cannot begin another passage.
    """
    return "".join(
        f"Doc {rank}(Title: {_on_one_line(p.title)}) {_on_one_line(p.text)}\n"
        for rank, p in enumerate(passages, start=1)
    )


def merge_passages(passages: Sequence[Sequence[Passage]]) -> list[Passage]:
    """The passages of several queries as those of one: the best of each, then the second best,
    and so on, each passage once. So a budget that cuts the end cuts no query off whole."""
    merged: dict[tuple[str, str, str], Passage] = {}
    for rank in range(max(map(len, passages), default=0)):
        for found in passages:
            if rank < len(found):
                passage = found[rank]
                # By text too: a retriever may have no ids.
                merged.setdefault((passage.id, passage.title, passage.text), passage)
    return list(merged.values())


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped_lines(text: str, max_characters: int, tags: Tags) -> str:
    if not text.strip():
        return f"{NOTHING_FOUND}\n"
    lines, size = [], 0
    for line in text.splitlines():
        lines.append(escape(line[:max_characters], tags) + "\n")
        size += len(lines[-1])
        if size >= max_characters:
            break
    # Once more over all: a tag may be spread over two lines.
    return tags.lookalike.sub("&lt;", "".join(lines))[:max_characters]


def _first_ids(ids: list[int], room: int, tokenizer: Tokenizer) -> list[int]:
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

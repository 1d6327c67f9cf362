"""Reading a response: its answer, its queries, and whether it keeps to the protocol.

Every function is one pass over the tags of the text, so its time is linear in the length whatever
a policy writes. Tags count only in their exact spelling: `<Answer>` or `< answer >` is plain text.
"""

from collections.abc import Iterator
from typing import NamedTuple

from sr1_jax.protocol.tags import ANSWER, SEARCH, SEARCH_TAGS, Tags


class _Tag(NamedTuple):
    name: str
    closes: bool
    start: int
    end: int  # one past the last character


def _tags_in(text: str, tags: Tags) -> Iterator[_Tag]:
    for match in tags.pattern.finditer(text):
        yield _Tag(match[2], match[1] == "/", match.start(), match.end())


def last_closed(text: str, name: str, tags: Tags = SEARCH_TAGS) -> str | None:
    """The content, stripped, of the last closed block of that name, from the innermost opening tag.

    Args:
        text: of one policy's words.
        name: of the block.
        tags: of the run.
    """
    content_span = None
    opened_at = None
    for tag in _tags_in(text, tags):
        if tag.name != name:
            continue
        if not tag.closes:
            opened_at = tag.end
        elif opened_at is not None:
            content_span = slice(opened_at, tag.start)
            opened_at = None
    return None if content_span is None else text[content_span].strip()


def extract_answer(response: str, tags: Tags = SEARCH_TAGS) -> str | None:
    """The content, stripped, of the last closed `<answer>…</answer>`; None if there is none.

    A closing tag belongs to the nearest opening tag before it; a closing tag with no opening tag
    of its own is ignored. An empty block gives "". Observations are not treated apart: pass the
    policy's own words if the text may hold unescaped passages.

    Args:
        response: a text.
        tags: of the run.
    """
    return last_closed(response, ANSWER, tags)


def extract_queries(segment: str) -> list[str]:
    """The queries of the last closed `<search>…</search>`: one a line, stripped, blanks dropped.

    Returns [] if no search block is closed or if it is blank.
    """
    return queries_of(last_closed(segment, SEARCH) or "")


def queries_of(request: str) -> list[str]:
    """The queries of a request to search: one a line, stripped, blanks dropped."""
    return [query for line in request.splitlines() if (query := line.strip())]


def is_well_formed(response: str, tags: Tags = SEARCH_TAGS) -> bool:
    """Whether the response is (think request observation)* think answer and nothing else.

    With search alone that is (think search information)* think answer. Only white space may stand
    between blocks and at both ends. No block may hold a protocol tag, and a request is followed by
    the observation of its own tool. Observations may be empty, all other blocks need content other
    than white space.

    Args:
        response: everything after the prompt.
        tags: of the run.
    """
    previous: str | None = None
    position = 0  # end of the last closed block
    found = _tags_in(response, tags)
    for opening in found:
        closing = next(found, None)
        if closing is None or opening.closes or not closing.closes:
            return False
        if opening.name != closing.name or opening.name not in tags.followers[previous]:
            return False
        if response[position : opening.start].strip():
            return False
        may_be_empty = opening.name in tags.observation_names
        if not may_be_empty and not response[opening.end : closing.start].strip():
            return False
        previous, position = opening.name, closing.end
    return previous == ANSWER and not response[position:].strip()

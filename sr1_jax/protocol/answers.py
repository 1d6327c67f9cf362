"""Reading a response: its answer, its queries, and whether it keeps to the protocol.

Every function is one pass over the tags of the text, so its time is linear in the length whatever
a policy writes. Tags count only in their exact spelling: `<Answer>` or `< answer >` is plain text.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from sr1_jax.protocol.tags import ANSWER, INFORMATION, SEARCH, TAG_NAMES, THINK

# No repetition in the pattern: nothing to backtrack over.
_TAG = re.compile(f"<(/?)({'|'.join(TAG_NAMES)})>")

# Which blocks may follow a block; None stands for the start of the response.
_FOLLOWERS: dict[str | None, tuple[str, ...]] = {
    None: (THINK,),
    THINK: (SEARCH, ANSWER),
    SEARCH: (INFORMATION,),
    INFORMATION: (THINK,),
    ANSWER: (),
}


class _Tag(NamedTuple):
    name: str
    closes: bool
    start: int
    end: int  # one past the last character


def _tags(text: str) -> Iterator[_Tag]:
    for match in _TAG.finditer(text):
        yield _Tag(match[2], match[1] == "/", match.start(), match.end())


def _last_closed(text: str, name: str) -> str | None:
    """Content of the last closed block of that name, from the innermost opening tag."""
    content_span = None
    opened_at = None
    for tag in _tags(text):
        if tag.name != name:
            continue
        if not tag.closes:
            opened_at = tag.end
        elif opened_at is not None:
            content_span = slice(opened_at, tag.start)
            opened_at = None
    return None if content_span is None else text[content_span].strip()


def extract_answer(response: str) -> str | None:
    """The content, stripped, of the last closed `<answer>…</answer>`; None if there is none.

    A closing tag belongs to the nearest opening tag before it; a closing tag with no opening tag
    of its own is ignored. An empty block gives "". Observations are not treated apart: pass the
    policy's own words if the text may hold unescaped passages.
    """
    return _last_closed(response, ANSWER)


def extract_queries(segment: str) -> list[str]:
    """The queries of the last closed `<search>…</search>`: one a line, stripped, blanks dropped.

    Returns [] if no search block is closed or if it is blank.
    """
    content = _last_closed(segment, SEARCH) or ""
    return [query for line in content.splitlines() if (query := line.strip())]


def is_well_formed(response: str) -> bool:
    """Whether the response is (think search information)* think answer and nothing else.

    Only white space may stand between blocks and at both ends. No block may hold a protocol tag.
    Think, search and answer need content other than white space; information may be empty.
    """
    previous: str | None = None
    position = 0  # end of the last closed block
    tags = _tags(response)
    for opening in tags:
        closing = next(tags, None)
        if closing is None or opening.closes or not closing.closes:
            return False
        if opening.name != closing.name or opening.name not in _FOLLOWERS[previous]:
            return False
        if response[position : opening.start].strip():
            return False
        if opening.name != INFORMATION and not response[opening.end : closing.start].strip():
            return False
        previous, position = opening.name, closing.end
    return previous == ANSWER and not response[position:].strip()

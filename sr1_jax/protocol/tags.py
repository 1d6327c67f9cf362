"""The tags of the search protocol: their names and how they are written."""

THINK = "think"
SEARCH = "search"
INFORMATION = "information"
ANSWER = "answer"

TAG_NAMES = (THINK, SEARCH, INFORMATION, ANSWER)


def open_tag(name: str) -> str:
    """The opening tag of a block, e.g. `<search>`."""
    return f"<{name}>"


def close_tag(name: str) -> str:
    """The closing tag of a block, e.g. `</search>`."""
    return f"</{name}>"


# The policy hands over to the environment right after one of these.
STOP_TAGS = (close_tag(SEARCH), close_tag(ANSWER))

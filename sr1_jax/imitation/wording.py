"""The words of a question: key words, names, and whether it names a title."""

from __future__ import annotations

import functools
import re
import string

from sr1_jax.retrieval.words import english_words
from sr1_jax.rewards.matching import normalize_answer

# Words that say how a question is built, not what it is about.
FUNCTION_WORDS = frozenset(
    """a an the of in on at by for from to with and or but nor as is are was were be been being am
    do does did done has have had having can could will would shall should may might must that this
    these those there here it its he his him she her hers they their theirs them we our ours us you
    your yours i my mine me who whom whose which what when where why how many much into about
    between during than then so such also both either neither if while because""".split()
)
_EDGES = string.punctuation + "“”‘’«»…–—"
_POSSESSIVE = re.compile(r"['’]s\b")
_PARENTHESES = re.compile(r"\s*\([^()]*\)\s*$")
# A word that begins with a capital, where it is short perhaps with a full stop ("St.", "J."), and
# those that follow it, joined at most by small words.
_CAPITAL = r"(?=[^\W\d_])[^a-zß-öø-ÿ\W\d_](?:[\w'’&-]{0,2}\.|[\w'’&-]*)"
_NAME = re.compile(rf"{_CAPITAL}(?:\s+(?:(?:of|the|de|van|von|du|la|le|for)\s+){{0,2}}{_CAPITAL})*")


def key_words(text: str) -> list[str]:
    """The words of a text that are no function words, as they stand, in order."""
    stripped = (_POSSESSIVE.sub("", word).strip(_EDGES) for word in text.split())
    return [word for word in stripped if word and word.lower() not in FUNCTION_WORDS]


def without_function_words(text: str) -> str:
    """A text's key words; the text itself where it has none."""
    return " ".join(key_words(text)) or " ".join(text.split())


def with_key_words(name: str, text: str, without: str = "") -> str:
    """A name, and the key words of a text that are neither in it nor in a text to leave out."""
    known = {*stems(name), *stems(without)}
    more = [word for word in key_words(text) if known.isdisjoint(stems(word))]
    return " ".join([name, *more])


@functools.lru_cache(maxsize=1 << 16)
def stems(text: str) -> tuple[str, ...]:
    """The stems of a text's words without stop words: what tells whether two texts share a word."""
    return tuple(english_words().split(text))


def bare_title(title: str) -> str:
    """A title as a text would name it: without what stands in parentheses at its end."""
    title = " ".join(title.split())
    return _PARENTHESES.sub("", title).strip() or title


@functools.lru_cache(maxsize=1 << 16)
def as_key(text: str) -> str:
    """What two spellings of a name have in common."""
    return normalize_answer(_POSSESSIVE.sub("", text))


def names(text: str, name: str) -> bool:
    """Whether a text holds a name word for word, whatever its case and punctuation."""
    key = as_key(name)
    return bool(key) and f" {key} " in f" {as_key(text)} "


def names_in(text: str) -> list[str]:
    """What looks like a name: runs of words with capitals, each once, in order."""
    found = {}
    for match in _NAME.finditer(text):
        words = _POSSESSIVE.sub("", match[0]).rstrip(".").split()
        # The capital of a sentence's beginning says nothing.
        while words and words[0].lower() in FUNCTION_WORDS:
            del words[0]
        if words:
            found.setdefault(as_key(" ".join(words)), " ".join(words))
    found.pop("", None)
    return list(found.values())

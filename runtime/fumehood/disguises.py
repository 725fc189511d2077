r"""What makes a text look like another, or say what its reader does not see. Pure.

Attacks: a description with instructions in characters that a terminal does not draw and a model reads (tag characters spell
ASCII, variation selectors carry bytes); bidirectional controls that reorder what a reviewer reads; a tool named as another is,
but for a letter of another alphabet, its case or its underscores, in wait for calls that were meant for the other.

What honest text needs is no disguise: a line break or tab, an emoji's variation selector, and joiners between letters that are joined.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from fumehood.screening.hidden import INVISIBLE, UNBOUND

# C0 and C1 drive terminals.
_HIDDEN = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{INVISIBLE}]|{UNBOUND}")
_WORD = re.compile(r"\w+")
_SEPARATORS = re.compile(r"[\W_]+")


def revealed(text: str) -> str:
    """The text as a terminal can show it: whatever is not drawn, or draws something else than itself, as an escape."""
    return "".join(char if char == "\n" or (char.isprintable() and not _HIDDEN.match(char)) else _escape(char) for char in text)


def unmistakable(text: str) -> str:
    """As `revealed`, on one line, and no letter passes for an ASCII one in a word that could be read as ASCII.

    For what somebody agrees to: a word of another alphabet stays, but not one of which each letter has a twin in ASCII.
    """
    line = revealed(text).replace("\n", "\\n")
    return line if line.isascii() else _WORD.sub(_plainly, line)


def _plainly(word: re.Match[str]) -> str:
    text = word[0]
    foreign = {char for char in text if not char.isascii()}
    if not foreign or not (any(char.isascii() and char.isalpha() for char in text) or all(map(_has_twin, foreign))):
        return text
    return "".join(_escape(char) if char in foreign and _has_twin(char) else char for char in text)


@functools.lru_cache(maxsize=4096)
def _has_twin(char: str) -> bool:
    """Whether a letter can be taken for one of ASCII's."""
    from confusable_homoglyphs import confusables  # type: ignore[import-untyped]

    if unicodedata.normalize("NFKC", char).isascii():
        return True
    found = confusables.is_confusable(char, greedy=True, preferred_aliases=[]) or []
    return any(one["c"].isascii() and one["c"].isalnum() for each in found for one in each["homoglyphs"])


def hidden(definition: Any, place: str = "") -> Iterator[str]:
    """Each place of a definition that holds a hidden character, with the first of them: `description: U+200B ZERO WIDTH SPACE`."""
    match definition:
        case str():
            if (found := _HIDDEN.search(definition)) is not None:
                yield f"{place or 'text'}: U+{ord(found[0]):04X} {unicodedata.name(found[0], 'a control character')}"
        case dict():
            for name, member in definition.items():
                if (found := _HIDDEN.search(name)) is not None:
                    yield f"{place}: a name with U+{ord(found[0]):04X} {unicodedata.name(found[0], 'a control character')}"
                yield from hidden(member, f"{place}.{revealed(name)}" if place else revealed(name))
        case list():
            for number, item in enumerate(definition):
                yield from hidden(item, f"{place}[{number}]")


def skeleton(name: str) -> str:
    """What is left of a name for an eye that reads fast: equal for names that can be taken for each other."""
    from confusable_homoglyphs import confusables

    folded = unicodedata.normalize("NFKC", name).casefold()
    letters = []
    for char in folded:
        found = [] if char.isascii() else confusables.is_confusable(char, greedy=True, preferred_aliases=[]) or []
        twins = [one["c"] for each in found for one in each["homoglyphs"] if one["c"].isascii() and one["c"].isalnum()]
        letters.append(twins[0].casefold() if twins else char)
    # Within ASCII too: `l`, `I` and `1`, `O` and `0`, `rn` and `m`.
    plain = "".join(letters).replace("1", "l").replace("i", "l").replace("0", "o").replace("rn", "m").replace("vv", "w")
    return _SEPARATORS.sub("", plain)


def look_alikes(names: Mapping[str, str]) -> dict[str, list[str]]:
    """For each key those other keys whose names can be taken for its own without being it."""
    alike: dict[str, list[str]] = {}
    for key, name in names.items():
        alike.setdefault(skeleton(name), []).append(key)
    return {
        key: [other for other in group if names[other] != names[key]]
        for group in alike.values()
        for key in group
        if len({names[other] for other in group}) > 1
    }


def _escape(char: str) -> str:
    number = ord(char)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"

r"""Characters that a reader does not see and a model reads, in what servers say. Pure.

Attacks: instructions in tag characters, which spell ASCII invisibly; bytes carried by a run of variation selectors; bidirectional
controls that show a reviewer another text than the model gets; a word cut by zero-width characters so that no filter knows it. They
are not removed but written out (`\u{202e}`), so that both readers see the same.

Honest text stays as it is: joiners between letters and emoji that are joined, the selector after an emoji or an ideograph, the three
flags that are spelled with tags, direction marks beside letters that run from right to left. What drives a terminal (C0, C1) is seen
or filtered by whoever prints, and is no concern of this.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

# Shared with `gateway.disguises`, which judges definitions and is stricter.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\ufe00-\ufe0d\U000e0000-\U000e0fff\U0001d173-\U0001d17a"
)
# Emoji's own selectors, and joiners: only where nothing is there that they could belong to.
UNBOUND = (
    "(?<![\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff#*0-9])[\ufe0e\ufe0f]"
    "|[\u200c\u200d](?![^\x00-\x7f])|(?<![^\x00-\x7f])[\u200c\u200d]"
)
RULE = "hidden-unicode"
# England's, Scotland's and Wales's.
_FLAGS = (
    "\U0001f3f4\U000e0067\U000e0062"
    "(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074|\U000e0077\U000e006c\U000e0073)\U000e007f"
)
_RTL = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc"
_HONEST = (
    f"{_FLAGS}"
    # One selector after an ideograph or a symbol that has variants; a run of them carries bytes.
    "|[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff][\ufe00-\ufe02\U000e0100-\U000e01ef](?![\ufe00-\ufe0f\U000e0100-\U000e01ef])"
    "|[\u2190-\u2aff][\ufe00](?![\ufe00-\ufe0f\U000e0100-\U000e01ef])"
    "|[\u1800-\u18af][\u180b-\u180f](?![\u180b-\u180f])"
    f"|[{_RTL}][\u200e\u200f\u061c](?![\u200e\u200f\u061c])|(?<![\u200e\u200f\u061c])[\u200e\u200f\u061c](?=[{_RTL}])"
    # A soft hyphen between letters.
    "|(?<=[^\\W\\d_])\u00ad(?=[^\\W\\d_])"
)
# A line or paragraph separator breaks a line and carries nothing.
_MARKED = INVISIBLE.replace("\u2028-\u202e", "\u202a-\u202e")
_ANY = re.compile(f"[{_MARKED}\ufe0e\ufe0f\u200c\u200d]")


@functools.cache
def _either() -> re.Pattern[str]:
    """What is honest, and what is hidden: compiled with the first text that may need it."""
    return re.compile(f"({_HONEST})|[{_MARKED}]|{UNBOUND}")


def marked(text: str) -> tuple[str, int]:
    """The text with every hidden character written out, and how many there were."""
    if text.isascii() or _ANY.search(text) is None:
        return text, 0
    count = 0

    def written(match: re.Match[str]) -> str:
        nonlocal count
        if match[1] is not None:
            return match[0]
        count += 1
        return f"\\u{{{ord(match[0]):x}}}"

    return _either().sub(written, text), count


def marked_values(value: Any, note: Callable[[str, int], None], place: str = "") -> Any:
    """A JSON value with every hidden character of its texts and names written out; `note` is told of each place."""
    match value:
        case str():
            text, count = marked(value)
            if count:
                note(place, count)
            return text
        case dict():
            made: dict[str, Any] = {}
            for name, each in value.items():
                at = f"{place}/{pointed(name)}"
                made[unused(marked_values(name, note, at), made)] = marked_values(each, note, at)
            return made
        case list():
            return [marked_values(each, note, f"{place}/{number}") for number, each in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        made = {each.name: marked_values(getattr(value, each.name), note, place) for each in fields(value) if each.init}
        return replace(value, **made)
    return value


def shows_all(value: Any) -> bool:
    """Whether no text of a value can hold a hidden character: most do not, and are not made anew."""
    left = [value]
    while left:
        each = left.pop()
        match each:
            case str():
                if not each.isascii() and _ANY.search(each) is not None:
                    return False
            case dict():
                left += each.keys()
                left += each.values()
            case list():
                left += each
            case _:
                if is_dataclass(each) and not isinstance(each, type):
                    left += [getattr(each, one.name) for one in fields(each)]
    return True


def unused(name: str, members: Mapping[str, Any]) -> str:
    """The name, or one like it that no member has: a name that was changed must not hide another."""
    number, made = 1, name
    while made in members:
        number += 1
        made = f"{name} ({number})"
    return made


def pointed(name: str) -> str:
    """A member's name as a JSON pointer has it, short and fit for one line."""
    shown = "".join(char if char.isprintable() else "?" for char in name[:64])
    return shown.replace("~", "~0").replace("/", "~1")

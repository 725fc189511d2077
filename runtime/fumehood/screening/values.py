"""Secrets in JSON values: found with their places, and removed so that the structure stays.

A text is searched with its member's name before it, `"name": "text"`, because some formats are known by that alone; so are the names.
Bytes that are written in base64 (`blob` of a resource, `data` of an image or a sound) are searched as what they are; if there is
a secret in them all of them are replaced, by the marker in base64. A value split over two members is not put together again, so a
secret that is split is not found; nor is one in an encoding that nothing here undoes.

Nearly every value holds nothing: all of its texts are searched at once first, and one by one only if something may be in them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from fumehood.model import Finding
from fumehood.screening.hidden import pointed, unused
from fumehood.screening.known import KnownSecrets
from fumehood.screening.search import Span, marker, removed, spans

# Whether a rule is to be heard at a place.
Heard = Callable[[str, str], bool]
MOST_PLACES = 32
_MEDIA = frozenset({"image", "audio"})
ELSEWHERE = "elsewhere"


class Tally:
    """What was found, by rule and place; places beyond the first few are counted together."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, rule: str, place: str, count: int = 1) -> None:
        """Count a finding."""
        key = (rule, place)
        if key not in self._counts and len(self._counts) >= MOST_PLACES:
            key = (rule, ELSEWHERE)
        self._counts[key] = self._counts.get(key, 0) + count

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of it, in the order of the text."""
        return tuple(Finding(rule=rule, place=place, count=count) for (rule, place), count in self._counts.items())


def found(value: Any, known: KnownSecrets, heard: Heard) -> tuple[Finding, ...]:
    """The secrets in a value."""
    return redacted(value, known, heard)[1]


def redacted(value: Any, known: KnownSecrets, heard: Heard) -> tuple[Any, tuple[Finding, ...]]:
    """A value without its secrets, and which they were. The value itself when there are none."""
    if not spans(b"".join(_texts(value)), known):
        return value, ()
    walk = _Walk(known, heard)
    made = walk.value(value, "", "")
    # What was found and is excused changes nothing: a value may be more than its texts.
    return (made, walk.tally.findings) if walk.tally.findings else (value, ())


def redacted_bytes(data: bytes, place: str, known: KnownSecrets, heard: Heard) -> tuple[bytes, tuple[Finding, ...]]:
    """The same for a stream's bytes."""
    walk = _Walk(known, heard)
    return walk.bytes(data, place), walk.tally.findings


class _Walk:
    """One value, text by text."""

    def __init__(self, known: KnownSecrets, heard: Heard) -> None:
        self._known = known
        self._heard = heard
        self.tally = Tally()

    def value(self, value: Any, name: str, place: str) -> Any:
        """The value without secrets. `name` is that of the nearest member around it."""
        match value:
            case str():
                return self._text(value, name, place)
            case bytes():
                return self.bytes(value, place)
            case dict():
                return self._members(value, place)
            case list():
                return [self.value(each, name, f"{place}/{number}") for number, each in enumerate(value)]
            case tuple():
                return tuple(self.value(each, name, f"{place}/{number}") for number, each in enumerate(value))
        if is_dataclass(value) and not isinstance(value, type):
            # What a conversation gave: its fields are no members of anybody's JSON, so they are no part of a place.
            changed = {each.name: self.value(getattr(value, each.name), "", place) for each in fields(value) if each.init}
            return replace(value, **changed)
        return value

    def bytes(self, data: bytes, place: str) -> bytes:
        """Some bytes without secrets."""
        return removed(data, self._counted(spans(data, self._known), place))

    def _members(self, value: dict[Any, Any], place: str) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        encoded = _encoded(value)
        for name, each in value.items():
            shown = self._name(name, place)
            at = f"{place}/{pointed(shown)}" if isinstance(shown, str) else place
            made[unused(shown, made)] = (
                self._blob(each, at) if name == encoded else self.value(each, name if isinstance(name, str) else "", at)
            )
        return made

    def _name(self, name: Any, place: str) -> Any:
        return self._text(name, "", f"{place}/(name)") if isinstance(name, str) else name

    def _text(self, text: str, name: str, place: str) -> str:
        before, data = _named(name, text)
        size = len(data) - len(before) - len(_AFTER) if name else len(data)
        inner = data[len(before) : len(before) + size]
        clipped = [
            Span(max(0, span.start - len(before)), min(size, span.end - len(before)), span.rule)
            for span in spans(data, self._known)
            if span.end > len(before) and span.start < len(before) + size
        ]
        heard = self._counted(clipped, place)
        return removed(inner, heard).decode("utf-8", "surrogatepass") if heard else text

    def _blob(self, text: str, place: str) -> str:
        data = _decoded(text)
        if data is None:
            return self._text(text, "", place)
        heard = self._counted(spans(data, self._known), place)
        return base64.b64encode(marker(heard[0].rule)).decode() if heard else text

    def _counted(self, every: list[Span], place: str) -> list[Span]:
        heard = [span for span in every if self._heard(span.rule, place)]
        for span in heard:
            self.tally.add(span.rule, place)
        return heard


_AFTER = b'"'


def _named(name: str, text: str) -> tuple[bytes, bytes]:
    """What a text is searched with before it, and all that is searched."""
    data = text.encode("utf-8", "surrogatepass")
    if not name:
        return b"", data
    before = b'"' + name.encode("utf-8", "surrogatepass") + b'": "'
    return before, before + data + _AFTER


def _encoded(value: dict[Any, Any]) -> str | None:
    """The member that is bytes written in base64."""
    if isinstance(value.get("blob"), str):
        return "blob"
    media = value.get("type")
    return "data" if isinstance(media, str) and media in _MEDIA and isinstance(value.get("data"), str) else None


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _texts(value: Any) -> Iterator[bytes]:
    """Every text of a value as it is searched, in pieces: what is in none of them together is in none of them alone."""
    left: list[tuple[Any, str]] = [(value, "")]
    while left:
        value, name = left.pop()
        if isinstance(value, str):
            yield b'\n"' + name.encode("utf-8", "surrogatepass") + b'": "'
            yield value.encode("utf-8", "surrogatepass")
            yield b'"\n'
        elif isinstance(value, dict):
            encoded = _encoded(value)
            for member, each in value.items():
                if not isinstance(member, str):
                    left.append((each, ""))
                elif member == encoded and (data := _decoded(each)) is not None:
                    yield from (b"\n", data, b"\n")
                else:
                    yield from (b"\n", member.encode("utf-8", "surrogatepass"), b"\n")
                    left.append((each, member))
        elif isinstance(value, list | tuple):
            left += [(each, name) for each in value]
        elif isinstance(value, bytes):
            yield value
        elif is_dataclass(value) and not isinstance(value, type):
            left += [(getattr(value, each.name), "") for each in fields(value) if each.init]

"""Arguments against the bounds of the profile, whatever the tool's schema allows. Pure, and in time that grows with their size alone.

A schema that bounds nothing passes a string of four megabytes, and a server that copies each item it is given ten thousand of them.
What is counted here is counted before any schema is asked, so that a judge of schemas never sees more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fumehood.gateway.protocol import printable
from fumehood.model import ArgumentBounds

_MOST_BYTES_OF_A_CHARACTER = 4


def excess(arguments: Any, most: ArgumentBounds) -> str | None:
    """What is over a bound, with its place, or None."""
    values = 0
    waiting: list[tuple[Any, int, str]] = [(arguments, 1, "$")]
    while waiting:
        value, depth, place = waiting.pop()
        values += 1
        if values > most.values:
            return f"$: over {most.values} values (`arguments.values`)"
        if isinstance(value, str):
            if _is_longer(value, most.string_bytes):
                return f"{_shown(place)}: a string over {most.string_bytes} bytes (`arguments.string`)"
        elif isinstance(value, dict | list):
            if depth > most.depth:
                return f"{_shown(place)}: over {most.depth} levels (`arguments.depth`)"
            if len(value) > most.items:
                return f"{_shown(place)}: over {most.items} items (`arguments.items`)"
            for name, item in _members(value):
                if isinstance(name, str) and _is_longer(name, most.string_bytes):
                    return f"{_shown(place)}: a name over {most.string_bytes} bytes (`arguments.string`)"
                waiting.append((item, depth + 1, f"{place}.{name:.40}" if isinstance(name, str) else f"{place}[{name}]"))
    return None


def _members(value: dict[str, Any] | list[Any]) -> Iterator[tuple[str | int, Any]]:
    return iter(value.items()) if isinstance(value, dict) else enumerate(value)


def _is_longer(text: str, most_bytes: int) -> bool:
    if len(text) * _MOST_BYTES_OF_A_CHARACTER <= most_bytes:
        return False
    return len(text) > most_bytes or len(text.encode("utf-8", "surrogatepass")) > most_bytes


def _shown(place: str) -> str:
    return printable(place, 100)

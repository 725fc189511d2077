"""YAML text into plain values with positions: the one parser for every file that an operator writes.

It accepts less than YAML: one document; maps with unique plain keys; lists; strings, integers, decimals, true, false
and null. Refused, each with its line and column: duplicate keys (two readers would believe different ones), anchors and
aliases (a few lines expand to gigabytes), tags (they name constructors), NaN and infinities (they compare as nobody
expects), merge keys, tabs and control characters (the scanner's business), and anything too deep or too large.
Works on parser events, so nothing is constructed before it has been judged. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fumehood.profile.problems import Problem, Problems, dotted
from fumehood.reasons import Reason

MAX_DEPTH = 16
MAX_NODES = 20_000

Path = tuple[str | int, ...]
Mark = tuple[int, int]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]+")
_NOT_A_NUMBER = re.compile(r"[-+]?\.(inf|nan)|[-+]?[0-9.]+[eE][-+]?[0-9]+", re.IGNORECASE)
_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file. `marks` has the line and column of every value, and of a map's keys under (*path, "key", name)."""

    file: str
    value: Any
    marks: Mapping[Path, Mark]
    reason: Reason

    def mark(self, path: Path, *, key: bool = False) -> Mark:
        """Where a field is, or the closest thing around it that exists."""
        if key and path and (found := self.marks.get((*path[:-1], "\0key", path[-1]))):
            return found
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, (1, 1))

    def problem(
        self, path: Path, message: str, *, key: bool = False, level: str = "error", reason: Reason | None = None
    ) -> Problem:
        """A finding at a field of this file."""
        line, column = self.mark(path, key=key)
        return Problem(
            file=self.file,
            line=line,
            column=column,
            field=dotted(path),
            message=message,
            level=level,
            reason=reason or self.reason,
        )


def parse(text: str, file: str, *, reason: Reason = Reason.PROFILE_INVALID) -> Source:
    """Parse one file. Raises Problems."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    builder = _Builder(file, reason)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            builder.take(event)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise Problems([_at(file, (line, column), f"not YAML: {said}", reason)]) from error
    return Source(file, builder.value, builder.marks, reason)


def _at(file: str, mark: Mark, message: str, reason: Reason, field: str = "") -> Problem:
    return Problem(file=file, line=mark[0], column=mark[1], field=field, message=message, reason=reason)


class _Builder:
    """Events in, one value out. A stack of open collections: a map waits for a key or for a key's value."""

    def __init__(self, file: str, reason: Reason) -> None:
        self.value: Any = None
        self.marks: dict[Path, Mark] = {}
        self._file = file
        self._reason = reason
        self._open: list[tuple[Any, Path]] = []
        self._key: list[str | None] = []
        self._nodes = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        """Take the next event."""
        kind = type(event).__name__
        mark = (event.start_mark.line + 1, event.start_mark.column + 1)
        for message in self._refusals(kind, event):
            raise Problems([_at(self._file, mark, message, self._reason, self._field())])
        if kind == "MappingStartEvent":
            self._enter({}, mark)
        elif kind == "SequenceStartEvent":
            self._enter([], mark)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._open.pop()
            self._key.pop()
        elif kind == "ScalarEvent":
            self._scalar(event, mark)

    def _refusals(self, kind: str, event: Any) -> Iterator[str]:  # noqa: C901 - a list of independent refusals
        if kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                yield "expected one document; `---` starts a second"
            if event.version or event.tags:
                yield "expected no `%` directives"
        if kind == "AliasEvent" or getattr(event, "anchor", None):
            yield "expected no anchors or aliases (`&`, `*`): write the value out, or use `extends`"
        if getattr(event, "ctag", None) is not None and getattr(event, "tag", None) is not None:
            yield f"expected no tags, found {event.tag}"
        if kind in ("MappingStartEvent", "SequenceStartEvent", "ScalarEvent"):
            self._nodes += 1
            if self._nodes > MAX_NODES:
                yield f"expected at most {MAX_NODES} values in a file"
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            if len(self._open) >= MAX_DEPTH:
                yield f"expected at most {MAX_DEPTH} levels"
            if self._wants_key():
                yield "expected a plain name as key"

    def _field(self) -> str:
        if not self._open:
            return ""
        return dotted(self._next_path()) if not self._wants_key() else dotted(self._open[-1][1])

    def _wants_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1][0], dict) and self._key[-1] is None

    def _next_path(self) -> Path:
        if not self._open:
            return ()
        holder, path = self._open[-1]
        step = len(holder) if isinstance(holder, list) else self._key[-1]
        return (*path, step if step is not None else "")

    def _put(self, value: Any, mark: Mark) -> Path:
        path = self._next_path()
        self.marks[path] = mark
        if not self._open:
            self.value = value
            return path
        holder = self._open[-1][0]
        if isinstance(holder, list):
            holder.append(value)
        else:
            holder[self._key[-1]] = value
            self._key[-1] = None
        return path

    def _enter(self, value: Any, mark: Mark) -> None:
        path = self._put(value, mark)
        self._open.append((value, path))
        self._key.append(None)

    def _scalar(self, event: Any, mark: Mark) -> None:
        if not self._wants_key():
            self._put(self._resolve(event, mark), mark)
            return
        holder, path = self._open[-1]
        name = event.value
        if name in holder:
            line = self.marks[(*path, "\0key", name)][0]
            message = f"expected each key once; `{name}` is already on line {line}"
            raise Problems([_at(self._file, mark, message, self._reason, dotted((*path, name)))])
        self._key[-1] = name
        self.marks[(*path, "\0key", name)] = mark

    def _resolve(self, event: Any, mark: Mark) -> Any:
        """A scalar's value by YAML 1.2's core schema; quoted ones are strings, `yes` and `010` are strings too."""
        text: str = event.value
        if not event.implicit[0]:
            return text
        if text.lower() in _WORDS and text in (text.lower(), text.capitalize(), text.upper()):
            return _WORDS[text.lower()]
        if _INTEGER.fullmatch(text) and len(text) <= 24:
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _DECIMAL.fullmatch(text) and len(text) <= 24:
            return float(text)
        if _NOT_A_NUMBER.fullmatch(text):
            message = f"expected a plain finite number, found {text}"
            raise Problems([_at(self._file, mark, message, self._reason, dotted(self._next_path()))])
        return text

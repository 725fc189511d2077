"""Secrets in a stream that is passed on as it comes: a request's body, a command's output on a terminal.

Held back is the last word alone, from `HELD_FROM` letters on and at most `MOST_HELD`: a secret is one word, so one that is cut is seen
whole before any of it has gone, but for its first few bytes; a prompt without a line end is not delayed. What has gone on is
remembered for `BEHIND` bytes, because some formats are known by what stands before. A private key has many words: from its first line
on all of it is taken out, to its last line or for `MOST_KEY` bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fumehood.screening.known import KnownSecrets
from fumehood.screening.search import Span, blanked, removed, spans

HELD_FROM = 12
MOST_HELD = 8 * 1024
BEHIND = 256
MOST_KEY = 64 * 1024
_PRIVATE = "private-key"
_NO_LETTERS = bytes(byte for byte in range(256) if not chr(byte).isalnum() or byte > 127)
_WORD = re.compile(rb"\S+\Z")
_KEY_END = re.compile(rb"-----END [A-Z0-9 ]{1,40}-----|Private-MAC: [0-9a-f]{40,64}")
_KEY_END_BYTES = 80


class Flow:
    """One stream. `heard` says which rules count; `keeps_length`: each secret is blanked out, and not replaced by a marker."""

    def __init__(self, known: KnownSecrets, heard: Callable[[str], bool], *, keeps_length: bool) -> None:
        """Nothing has come yet."""
        self._known = known
        self._heard = heard
        self._keeps_length = keeps_length
        self._behind = b""
        self._held = b""
        self._key_left = 0
        self.found: dict[str, int] = {}

    def feed(self, data: bytes) -> bytes:
        """What may go on of the stream so far, without secrets."""
        return self._pass(data, final=False)

    def end(self) -> bytes:
        """What was still held back."""
        return self._pass(b"", final=True)

    def _pass(self, data: bytes, *, final: bool) -> bytes:
        gone = b""
        if self._key_left:
            gone, data = self._within_key(data, final=final)
            if self._key_left and not final:
                return gone
        text = self._behind + self._held + data
        base = len(self._behind)
        every = [span for span in spans(text, self._known) if self._heard(span.rule) and span.end > base]
        cut = len(text) if final else self._cut(text, base, every)
        due = [span for span in every if span.end <= cut or (span.start < cut and _goes_on(text, span))]
        for span in due:
            self.found[span.rule] = self.found.get(span.rule, 0) + 1
            if not final and _goes_on(text, span):
                self._key_left = MOST_KEY
        # Of a secret whose beginning has gone already the rest is taken out all the same.
        here = [Span(max(span.start - base, 0), min(span.end, cut) - base, span.rule) for span in due]
        out = (blanked if self._keeps_length else removed)(text[base:cut], here)
        self._behind, self._held = text[max(0, cut - BEHIND) : cut], text[cut:]
        if self._key_left:
            self._behind = b""
        return gone + out

    @staticmethod
    def _cut(text: bytes, base: int, every: Sequence[Span]) -> int:
        """Up to where the text may go: what may be the beginning of a secret stays."""
        word = _WORD.search(text, max(base, len(text) - MOST_HELD))
        # Of letters and digits there must be so many: a row of dots that tells of progress goes on at once.
        cut = len(text) if word is None or len(word[0].translate(None, _NO_LETTERS)) < HELD_FROM else word.start()
        for span in every:
            if _goes_on(text, span):
                # Its end may have begun.
                cut = max(span.start, len(text) - _KEY_END_BYTES)
            elif span.start < cut < span.end:
                # Nothing of it is cut in two: it stays as a whole if it may go on, and goes as a whole if it does not.
                cut = span.end if span.end < len(text) or len(text) - span.start > MOST_HELD else span.start
        return max(cut, base)

    def _within_key(self, data: bytes, *, final: bool) -> tuple[bytes, bytes]:
        """Take a private key out to its end; what follows it."""
        text, self._held = self._held + data, b""
        if (end := _KEY_END.search(text)) is not None:
            self._key_left = 0
            return self._blank(end.end()), text[end.end() :]
        keep = 0 if final else min(len(text), _KEY_END_BYTES)
        self._key_left = max(0, self._key_left - (len(text) - keep))
        self._held = text[len(text) - keep :]
        return self._blank(len(text) - keep), b""

    def _blank(self, count: int) -> bytes:
        """What a key's further lines leave: nothing, where lengths may change."""
        return b"x" * count if self._keeps_length else b""


def _goes_on(text: bytes, span: Span) -> bool:
    """Whether a private key has not ended with the text."""
    return span.rule == _PRIVATE and span.end == len(text) and _KEY_END.search(text, span.start) is None

"""What an approver is shown of a call, and what an approval is bound to. Pure; one renderer for every channel.

    question   the fields of a call that waits, as JSON: kept with the approval, shown, and posted to a webhook
    binding    the digest of everything that decides what the call does, by which an approval is good for this call and no other
    lines      the question for a person: each line escaped, none left out without a word

Attacks: arguments that scroll what matters away, that draw over it (ANSI, bidirectional controls), hide in it (zero width, tags),
read as something else (letters of another alphabet), or are so long that a terminal folds them into what looks like a line of ours; a
text that is cut where its end would have told. So what does not fit says how many bytes are left out, their digest, and how all of it
is seen; everything from outside is made unmistakable; and no text of a caller's can begin a line of its own, not even by being folded.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fumehood.disguises import unmistakable
from fumehood.permission import Need, Vote

# With everything else a question fits one message to the ledger.
ARGUMENTS_BYTES = 16 * 1024
SENTENCES_BYTES = 24 * 1024
REASONS_BYTES = 8 * 1024
TEXT_BYTES = 1024
COLUMNS = 132
FOLDED = "           | "
NOT_PINNED = "contents not pinned"

Question = Mapping[str, Any]


def digest_of(bound: Mapping[str, Any]) -> str:
    """`sha256:<hex>` of what an approval is bound to. ASCII, so that whatever a caller sent has a form."""
    return "sha256:" + hashlib.sha256(json.dumps(bound, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """The arguments as an approver sees them and as they are kept: JSON, a member a line."""
    return json.dumps(arguments, indent=2, ensure_ascii=True)


def shown_arguments(text: str) -> dict[str, Any]:
    """Of the arguments what fits a question, and what does not by its size and digest. The text is ASCII."""
    return {
        "arguments": text[:ARGUMENTS_BYTES],
        "arguments_bytes": len(text),
        "arguments_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def fitting(sentences: Sequence[str], where: str, room: int = SENTENCES_BYTES) -> list[str]:
    """As many sentences as fit a question; then one that says how many there are more, and where all of them are."""
    kept: list[str] = []
    for number, sentence in enumerate(sentences):
        room -= len(json.dumps(sentence))
        if room < 0:
            return [*kept, f"{len(sentences) - number} more sentences are left out here: `{where}`."]
        kept.append(sentence)
    return kept


def cut(text: str) -> str:
    """A text for one line; what is left out of a long one is said."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= TEXT_BYTES:
        return data.decode()
    return f"{data[:TEXT_BYTES].decode(errors='ignore')}… ({len(data) - TEXT_BYTES} bytes left out)"


def needed(need: Need) -> str:
    """Whose approval it takes, in words."""
    who = "any approver" if need.approvers is None else " or ".join(sorted(need.approvers)) or "nobody"
    many = who if need.count == 1 else f"{need.count} of: {who}"
    return f"{many}; or the requester's own confirmation" if need.requester else many


def lines(waiting: Mapping[str, Any], most_arguments: int = ARGUMENTS_BYTES, columns: int = COLUMNS) -> Iterator[str]:
    """An approval as the ledger tells of it (`id`, `binding`, `until`, `question`, `need`, `votes`), for a person to decide.

    No line is wider than `columns`: what a terminal folded would begin a line that looks like one of ours.
    """
    for line in _whole_lines(waiting, most_arguments):
        yield from folded(line, columns)


def folded(line: str, columns: int) -> Iterator[str]:
    """A line in pieces that fit, each but the first marked as what it is. Letters may be two columns wide."""
    piece, room = "", columns
    for char in line:
        width = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if width > room:
            yield piece
            piece, room = FOLDED, max(2, columns - len(FOLDED))
        piece += char
        room -= width
    yield piece


def _whole_lines(waiting: Mapping[str, Any], most_arguments: int) -> Iterator[str]:
    question: Question = waiting["question"]
    name = waiting["id"]
    what = question["kind"] if question["tool"] is None else f"{question['kind']} {_line(question['tool'])}"
    where = "" if question["server"] is None else f" of the server {_line(question['server'])}"
    yield f"approval {name}: {what}{where}"
    whose = f"uid {question['uid']}, tenant {_line(question['tenant'])}"
    yield f"  asked by   {_line(question['sender'])} ({whose}), by {question['front_door']}"
    for number, why in enumerate(question["why"] or [f"the rule {question['rule']} asks for it"]):
        yield f"  {'because' if number == 0 else '':<10} {_line(why)}"
    yield from _arguments(question, name, most_arguments)
    if (workspace := question["workspace"]) is not None:
        yield f"  workspace  {_line(workspace['path'])} ({workspace['mode']}), {workspace['contents']}"
    if question["session"] is not None:
        yield f"  session    {question['session']}: in a box that earlier calls used"
    yield f"  profile    {_line(question['profile'])}, {question['profile_digest']}"
    for sentence in question.get("may", ()):
        yield f"             - {_line(sentence)}"
    for label in ("image", "pin", "policy"):
        if question[label] is not None:
            yield f"  {label:<10} {_line(question[label])}"
    yield f"  needs      {needed(need_of(waiting['need']))}"
    for vote in waiting.get("votes", ()):
        said = "approved" if vote["approves"] else "denied"
        yield f"             {said} by {_line(vote['approver'])} ({vote['how']}), {when(vote['at_s'])}{_reason(vote['reason'])}"
    yield f"  expires    {when(waiting['until'])}"
    yield f"  binding    {waiting['binding']}"


def _arguments(question: Question, name: str, most: int) -> Iterator[str]:
    text = question.get("arguments")
    size, digest = question["arguments_bytes"], question["arguments_sha256"]
    if text is None:
        yield f"  arguments  {size} bytes, no longer kept: sha256 {digest}"
        return
    text = text[:most]
    yield f"  arguments  {size} bytes, sha256 {digest}"
    for line in written(text):
        yield f"             {line}"
    if len(text) < size:
        yield f"             … {size - len(text)} bytes are left out: `fumehood approvals show {name} --arguments` shows all of them"


def written(text: str) -> Iterator[str]:
    """The lines of arguments, JSON's escapes of letters undone where they cannot mislead."""
    for line in text.split("\n"):
        yield _line(_letters(line))


def _letters(line: str) -> str:
    """A line of ASCII JSON with its escapes of printable letters undone; of anything else they stay."""
    if "\\u" not in line:
        return line
    found: list[str] = []
    rest = line
    while rest:
        before, mark, after = rest.partition("\\")
        found.append(before)
        if not mark:
            break
        if after[:1] == "u" and len(after) >= 5:
            char = _char(after[1:5])
            found.append(char if char.isalpha() and not char.isascii() else "\\" + after[:5])
            rest = after[5:]
        else:
            found.append("\\" + after[:1])
            rest = after[1:]
    return "".join(found)


def _char(digits: str) -> str:
    try:
        return chr(int(digits, 16))
    except ValueError:
        return ""


def need_of(fields: Mapping[str, Any]) -> Need:
    """What the ledger keeps of a need."""
    names = fields["approvers"]
    return Need(approvers=None if names is None else frozenset(names), count=fields["count"], requester=fields["requester"])


def votes_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Vote, ...]:
    """What the ledger keeps of votes."""
    return tuple(Vote(**row) for row in rows)


def when(at_s: float) -> str:
    """A moment, for people on other hosts too."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _reason(reason: str) -> str:
    return f": {_line(reason)}" if reason else ""


def _line(text: str) -> str:
    return unmistakable(text)

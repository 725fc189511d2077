r"""What a text among the arguments surely means as a path, or as the host of a URL. Pure.

The attack: a policy allows what is below /workspace/src, and the text is `src/../../etc`, `src%2f..`, `src\\..`, or the same in
letters that only look like these. So a text that could mean something else, to a server or to the kernel, means nothing here: a
policy that wants to know finds no tag. `..` is never resolved: behind a symbolic link it is not the folder before.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata

WORKSPACE = "/workspace"
_PATH_CHARS = 4096
_URL = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{0,31}://(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?(?:[/?#][!-\[\]-~]*)?"
)


def path_of(text: str) -> str | None:
    """The one absolute path that a text can mean, relative to /workspace; None when there is none, or another."""
    if not text or len(text) > _PATH_CHARS or text.startswith("~") or not text.isprintable():
        return None
    if "\\" in text or "%" in text or "://" in text or unicodedata.normalize("NFKC", text) != text:
        return None
    segments = [segment for segment in text.split("/") if segment not in ("", ".")]
    if any(segment.strip(" .") == "" for segment in segments):  # `..`, and what some systems take for it
        return None
    base = "" if text.startswith("/") else WORKSPACE
    return f"{base}/{'/'.join(segments)}".rstrip("/") or "/"


def host_of(text: str) -> str | None:
    """The host of a URL, in lower case; None for what is no URL, or one that two parsers could read two ways."""
    found = _URL.fullmatch(text)
    if found is None:
        return None
    host = found["host"].lower().rstrip(".")
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1]))
        if host.rpartition(".")[2][:1].isdigit():  # 0x7f.1 and 2130706433 are 127.0.0.1 to some
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return None
    return host or None

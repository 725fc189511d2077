"""How long texts are searched for secrets and hidden characters, in processor time of this one process."""

from __future__ import annotations

import base64
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from fumehood.reach import Secret, SecretForm
from fumehood.screening.hidden import marked
from fumehood.screening.known import KnownSecrets
from fumehood.screening.values import redacted

LEASES = 5
_WORDS = ["alpha", "key", "token", "the", "of", "function", "return", "password: x", "café"]
_MEBIBYTE = 2**20


def screened(rounds: int) -> dict[str, float]:
    """Milliseconds at the median by what was searched, with a few leases that live; and those after another lease was issued."""
    known, dice = KnownSecrets(), random.Random(2026)  # noqa: S311 - a text, no secret
    for number in range(LEASES):
        _issue(known, number)

    def words(size: int) -> str:
        return " ".join(dice.choice(_WORDS) for _ in range(size // 4))[:size]

    def search(value: Any) -> Callable[[], object]:
        return lambda: redacted(value, known, lambda _, __: True)

    arguments = {"text": words(5000), "files": [{"path": f"/a/{number}", "content": words(50)} for number in range(60)]}
    text, image = words(_MEBIBYTE), base64.b64encode(dice.randbytes(_MEBIBYTE * 3 // 4)).decode()
    found = {
        "10 KB of arguments, 122 texts": _ms(search(arguments), rounds * 10),
        "a result of 1 MiB of text": _ms(search({"content": [{"type": "text", "text": text}]}), rounds),
        "a result of 1 MiB of an image in base64": _ms(search({"content": [{"type": "image", "data": image}]}), rounds),
        "hidden characters in 1 MiB of text that is not ASCII": _ms(lambda: marked(text), rounds),
    }
    leases = iter(range(LEASES, 10**9))

    def after() -> None:
        _issue(known, next(leases))
        search(arguments)()

    return {**found, "10 KB of arguments after a lease was issued, 10 more living": _ms(after, 10)}


def _issue(known: KnownSecrets, number: int) -> None:
    secret = Secret(form=SecretForm.TOKEN, parts={"token": f"a-token-of-lease/+{number:06}-abcdefghijklmnopqrstuvw"})
    known.enter(f"lease {number}", secret)


def _ms(once: Callable[[], object], times: int) -> float:
    once()
    spent = []
    for _ in range(times):
        began = time.process_time()
        once()
        spent.append((time.process_time() - began) * 1e3)
    return statistics.median(spent)

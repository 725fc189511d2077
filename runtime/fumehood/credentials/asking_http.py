"""One HTTPS request to a provider of credentials, and its answer as JSON: bounded, without redirects, proxies or the environment.

Attack: what is sent holds the operator's own secrets. A redirect, a proxy of the environment or a netrc file would carry them
elsewhere, an error text with the URL or the body into a record. Errors tell the host, the path's last part and the status.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fumehood.faults import FumehoodError
from fumehood.reasons import Reason

TIMEOUT_S = 10.0
MOST_BYTES = 2**20
# No compression: a small answer could become a large one.
_PLAIN = {"Accept": "application/json", "Accept-Encoding": "identity"}
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Answered:
    """A status, and the JSON object of the body (empty if it had none)."""

    status: int
    fields: Mapping[str, Any] = field(repr=False)


def checked_url(name: str, option: str, url: str) -> str:
    """An URL of the configuration that secrets may be sent to. Raises FumehoodError(CONFIG_INVALID)."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", urlsplit("")
    safe = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    if not safe or not host or parts.username is not None or parts.fragment:
        detail = f"credentials.{name}.{option}: expected https://host/..., without a user name"
        raise FumehoodError(Reason.CONFIG_INVALID, detail)
    return url


class Http:
    """Requests to one provider. `authorities` is PEM to trust beside the system's."""

    def __init__(self, authorities: str | None = None) -> None:
        self._authorities = authorities
        self._tls: ssl.SSLContext | None = None

    async def ask(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, form: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None, basic: tuple[str, str] | None = None,
    ) -> Answered:  # fmt: skip
        """Ask. Raises FumehoodError(LEASE_FAILED) when there is no answer, or none that is JSON."""
        import httpx2

        where = f"{method} {urlsplit(url).hostname}"
        try:
            async with (
                httpx2.AsyncClient(verify=self._context(), trust_env=False, timeout=TIMEOUT_S, follow_redirects=False) as client,
                client.stream(
                    method, url, headers={**_PLAIN, **(headers or {})}, data=form, json=body,
                    auth=None if basic is None else httpx2.BasicAuth(*basic),
                ) as response,
            ):  # fmt: skip
                content = b""
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > MOST_BYTES:
                        raise FumehoodError(Reason.LEASE_FAILED, f"{where}: an answer of more than {MOST_BYTES} bytes")
        except httpx2.HTTPError as error:
            raise FumehoodError(Reason.LEASE_FAILED, f"{where}: {type(error).__name__}") from None
        try:
            fields = json.loads(content) if content.strip() else {}
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            if response.status_code < 400:
                raise FumehoodError(Reason.LEASE_FAILED, f"{where}: {response.status_code}, and no JSON object")
            fields = {}
        return Answered(response.status_code, fields)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            if self._authorities:
                self._tls.load_verify_locations(cadata=self._authorities)
        return self._tls


def text_of(answered: Answered, field: str, asked: str) -> str:
    """A text that the answer must have. Raises FumehoodError(LEASE_FAILED)."""
    value = answered.fields.get(field)
    if answered.status >= 300 or not isinstance(value, str) or not value:
        raise refused(asked, answered, field)
    return value


def refused(asked: str, answered: Answered, field: str = "") -> FumehoodError:
    """An answer that is not what was asked for. The server's own words stay out: some echo what they were sent."""
    missing = f" without {field}" if field and answered.status < 300 else ""
    return FumehoodError(Reason.LEASE_FAILED, f"{asked}: the answer was {answered.status}{missing}")

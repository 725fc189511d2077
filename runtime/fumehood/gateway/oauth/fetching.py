"""An issuer's keys from its URL: read when they are first needed, kept, and read again when they are old or a token names another.

A stranger decides what key id a token names, and so could have us ask the issuer as often as he likes, or keep us from asking at
all. So it is asked at most once in `AGAIN_S`, whatever comes; who waits for an answer is not who can cut it short; and a set that
was read is good for `OLD_S`, and on for `DEAD_S` while it cannot be read anew. Then nobody is believed any more: an issuer that
revoked a key must not be outlived by it because somebody keeps us from hearing.

The way there is the one of every connection of ours: the name resolved and each address judged (a URL that leads to a private or a
metadata address is refused unless the operator named its network), the certificate verified, nothing decompressed, no redirect
followed; bounded in bytes and in seconds.
"""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

import anyio

from fumehood.egress.client import failure, secured
from fumehood.egress.dial import dialer_of
from fumehood.egress.limits import Meter
from fumehood.egress.refusals import Rejected
from fumehood.egress.trust import upstream_context
from fumehood.faults import FumehoodError
from fumehood.gateway.oauth.keys import SET_BYTES, Keys, NoKeysError, keys_of
from fumehood.gateway.oauth.signed import Key
from fumehood.oauth_config import IssuerConfig
from fumehood.ports import Clock, Outward
from fumehood.reach import NetworkLimits

FETCH_S = 10.0
AGAIN_S = 60.0
OLD_S = 3600.0
DEAD_S = 24 * 3600.0
_log = logging.getLogger("fumehood")


class KeyStore:
    """The keys of one issuer. `text` is a set that the operator keeps in a file, and then nothing is fetched."""

    def __init__(self, issuer: IssuerConfig, text: str | None, outward: Outward, clock: Clock) -> None:
        """Read a file's set; one by URL is read when it is needed. Raises NoKeysError."""
        self.issuer = issuer
        self._outward = outward
        self._clock = clock
        self._fixed = text is not None
        self._keys: Keys = {} if text is None else keys_of(text.encode(), issuer.algorithms)
        self._read_at_s: float | None = None
        self._asked_at_s: float | None = None
        self._asking = anyio.Lock()

    def find(self, place: tuple[str, str]) -> Key | None:
        """The key of this id and algorithm among those that are there and not dead."""
        return None if self._age_s() > DEAD_S else self._keys.get(place)

    async def freshen(self, place: tuple[str, str]) -> None:
        """Read the set again when that is due, or when it may bring the key. Returns when there is nothing more to wait for."""
        if self._fixed or not self._due(place) or (self._asking.locked() and self.find(place) is not None):
            return
        async with self._asking:
            if not self._due(place):  # somebody else has just asked
                return
            self._asked_at_s = self._clock.monotonic_s()
            # Shielded: who asked first could hang up, and so keep the keys from all who wait.
            with anyio.move_on_after(FETCH_S, shield=True) as reading:
                await self._read()
            if reading.cancelled_caught:
                self._failed(f"it took over {FETCH_S:g} s")

    @property
    def unread(self) -> bool:
        """Whether there are no keys at all by which a token could be judged."""
        return not self._keys or self._age_s() > DEAD_S

    def _age_s(self) -> float:
        if self._fixed:
            return 0.0
        return DEAD_S + 1 if self._read_at_s is None else self._clock.monotonic_s() - self._read_at_s

    def _due(self, place: tuple[str, str]) -> bool:
        if self._asked_at_s is not None and self._clock.monotonic_s() - self._asked_at_s < AGAIN_S:
            return False
        return self._age_s() > OLD_S or place not in self._keys

    async def _read(self) -> None:
        try:
            self._keys = keys_of(await fetched(self.issuer, self._outward), self.issuer.algorithms)
        except Rejected as error:
            self._failed(str(failure(error)))
        except (FumehoodError, NoKeysError) as error:
            self._failed(str(error))
        else:
            self._read_at_s = self._clock.monotonic_s()

    def _failed(self, why: str) -> None:
        """Told at most once in `AGAIN_S`, like everything else here."""
        _log.warning("the keys of %s could not be read from %s: %s", self.issuer.issuer, self.issuer.keys.url, why)


async def fetched(issuer: IssuerConfig, outward: Outward) -> bytes:
    """What is at the URL. Raises Rejected, FumehoodError (ExchangeFailed) or NoKeysError."""
    url = urlsplit(issuer.keys.url or "")
    name, port = url.hostname or "", url.port or 443
    context = await anyio.to_thread.run_sync(upstream_context, outward.authorities)  # 40 ms the first time
    connected = await dialer_of(outward).dial(name, port, issuer.keys.addresses)
    meter = Meter(NetworkLimits(bytes_in=2 * SET_BYTES, bytes_out=16 * 1024))
    connection = await secured(connected, name, context, meter)
    try:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        heads = [("Host", url.netloc), ("User-Agent", "fumehood"), ("Accept", "application/json"), ("Accept-Encoding", "identity")]
        await connection.send("GET", target, heads, b"")
        status, _ = await connection.head()
        if status != 200:
            raise NoKeysError(f"it answered {status}" + (", and redirects are not followed" if 300 <= status < 400 else ""))
        body = bytearray()
        while piece := await connection.piece():
            body += piece
            if len(body) > SET_BYTES:
                raise NoKeysError(f"it is over {SET_BYTES} bytes")
        return bytes(body)
    finally:
        connection.close()

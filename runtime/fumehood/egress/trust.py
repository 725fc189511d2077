"""Which certificates are believed: by a box, and by the gate upstream.

A box believes its host's roots and its own task's authority, in one file that takes the place of the distribution's bundle and that
the variables name for programs which bring their own. The variables win over the profile's `environment`: a profile that
names another bundle would cut the tool off from every `http` rule. Java reads neither file nor variable: an image that has one gets
the same authorities in the place of its Java's own store (`java_store.py`).
"""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

from fumehood.egress.java_store import java_store
from fumehood.faults import FumehoodError
from fumehood.reach import SuppliedFile, Supplies
from fumehood.reasons import Reason

BUNDLE = "fumehood/ca.pem"
JAVA = "fumehood/cacerts"
DISTRIBUTION = "/etc/ssl/certs/ca-certificates.crt"
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
_MAX_BYTES = 8 * 2**20
_BUNDLES = (DISTRIBUTION, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")


@functools.cache
def system_roots() -> bytes:
    """The host's roots as PEM, read once; empty on a host that has none. Raises FumehoodError."""
    own = ssl.get_default_verify_paths().cafile
    for path in filter(None, (own, *_BUNDLES)):
        try:
            with Path(path).open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except OSError:
            continue
        if len(text) > _MAX_BYTES:
            raise FumehoodError(Reason.UNENFORCEABLE, f"{path} is over {_MAX_BYTES} bytes")
        return text.rstrip() + b"\n"
    return b""


def supplies(authority: bytes, operators: str | None, java: str | None = None) -> Supplies:
    """What a box needs to believe its gate: the task's certificate, and as PEM what the operator trusts upstream.

    `java` is where a Java of its image's keeps what it trusts.
    """
    parts = (system_roots(), (operators or "").strip().encode(), authority.strip())
    bundle = b"\n".join(part for part in parts if part) + b"\n"
    path = f"/run/{BUNDLE}"
    files = [SuppliedFile(name=BUNDLE, content=bundle, over=DISTRIBUTION)]
    if java is not None:
        files.append(SuppliedFile(name=JAVA, content=java_store(*parts), over=java))
    return Supplies(environment=dict.fromkeys(VARIABLES, path), files=tuple(files))


@functools.lru_cache(maxsize=4)
def upstream_context(operators: str | None) -> ssl.SSLContext:
    """How the gate verifies upstream servers; reading all the roots takes 40 ms, so call it in a thread. Raises FumehoodError.

    One context serves every task: as a client it keeps no session of its own accord.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        roots = system_roots()
        if roots:
            context.load_verify_locations(cadata=roots.decode("ascii", "ignore"))
        if operators:
            context.load_verify_locations(cadata=operators)
    except (ssl.SSLError, ValueError) as error:
        raise FumehoodError(Reason.CONFIG_INVALID, f"egress.authorities: {error}") from error
    return context

"""What the worker is given of `gateway.http.oauth`: the section with its files, read with the operator's rights.

It crosses as text, in pieces that each fit into a message.

Standard library and the strict reader of keys, which is asked only to refuse a file where it can still be refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from fumehood.faults import FumehoodError
from fumehood.oauth_config import Binding, IssuerConfig, KeysConfig, OAuthConfig, SubjectConfig
from fumehood.reasons import Reason
from fumehood.safe_files import read_trusted

if TYPE_CHECKING:
    import ssl

_SET_BYTES = 64 * 1024
_PEM_BYTES = 256 * 1024
_PIECE_CHARACTERS = 24 * 1024  # of which each can take six as JSON in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthFront:
    """For whom tokens are believed, on behalf of the operator `uid`.

    `key_sets` are the texts of those that are kept in files, by issuer; `authorities` is PEM.
    """

    config: OAuthConfig
    uid: int
    key_sets: Mapping[str, str] = field(default_factory=dict, hash=False)
    authorities: str | None = None

    def ask_certificates(self, context: ssl.SSLContext) -> None:
        """Have clients asked for certificates, which they need not have: the token says whether it was issued to one."""
        import ssl

        if self.authorities is None:
            return
        context.load_verify_locations(cadata=self.authorities)
        context.verify_mode = ssl.CERT_OPTIONAL
        # A resumed session would show a certificate that nobody has verified since.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET


def read_front(config: OAuthConfig, uid: int) -> OAuthFront:
    """The section with its files, which only root and `uid` could have written. Raises FumehoodError."""
    sets = {}
    for number, each in enumerate(config.issuers):
        if each.keys.file is not None:
            where = f"gateway.http.oauth.issuers[{number}].jwks.file"
            sets[each.issuer] = _read(each.keys.file, where, uid, _SET_BYTES)
            _check_keys(sets[each.issuer], each, where)
    front = OAuthFront(config=config, uid=uid, key_sets=sets, authorities=_authorities(config, uid))
    pieces_of(front)
    return front


def pieces_of(front: OAuthFront) -> tuple[str, ...]:
    """The value as texts that each fit into a message."""
    text = json.dumps(asdict(front), separators=(",", ":"))
    return tuple(text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS))


def front_of(pieces: Sequence[str]) -> OAuthFront:
    """The value whose pieces these are. Raises ValueError, KeyError or TypeError for anything else."""
    has = json.loads("".join(pieces))
    return OAuthFront(config=_config_of(has["config"]), uid=has["uid"], key_sets=has["key_sets"], authorities=has["authorities"])


def _config_of(has: Mapping[str, Any]) -> OAuthConfig:
    return OAuthConfig(
        resource=has["resource"],
        issuers=tuple(map(_issuer_of, has["issuers"])),
        binding=Binding(has["binding"]),
        scopes=tuple(has["scopes"]),
        client_authorities=has["client_authorities"],
    )


def _issuer_of(has: Mapping[str, Any]) -> IssuerConfig:
    made = {
        "keys": KeysConfig(**{**has["keys"], "addresses": tuple(has["keys"]["addresses"])}),
        "algorithms": tuple(has["algorithms"]),
        "senders": tuple(SubjectConfig(name=each["name"], claims=tuple(map(tuple, each["claims"]))) for each in has["senders"]),
    }
    return IssuerConfig(**{**has, **made})


def _read(path: str, where: str, uid: int, most: int) -> str:
    try:
        return read_trusted(path, uid, limit_bytes=most)
    except FileNotFoundError:
        raise FumehoodError(Reason.CONFIG_INVALID, f"{where}: there is no file {path}", remedy="Name an existing file.") from None


def _check_keys(text: str, issuer: IssuerConfig, where: str) -> None:
    from fumehood.gateway.oauth.keys import NoKeysError, keys_of

    try:
        keys_of(text.encode(), issuer.algorithms)
    except NoKeysError as error:
        raise FumehoodError(Reason.CONFIG_INVALID, f"{where}: {issuer.keys.file} is no JWK Set to verify with: {error}") from error


def _authorities(config: OAuthConfig, uid: int) -> str | None:
    path = config.client_authorities
    if path is None:
        return None
    import ssl

    where = "gateway.http.oauth.client_authorities"
    text = _read(path, where, uid, _PEM_BYTES)
    try:
        # Tried where it can still be refused: the worker would have to do without.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
    except (OSError, ValueError) as error:
        raise FumehoodError(Reason.CONFIG_INVALID, f"{where}: {path} holds no certificates in PEM: {error}") from None
    return text

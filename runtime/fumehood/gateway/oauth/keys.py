"""An issuer's keys: a JWK Set (RFC 7517) made into what verifies tokens, by key id and algorithm. Pure.

Invariants: a key verifies only with the algorithms that fit its type, that it does not exclude, and that the operator pinned for
the issuer; a symmetric key, one with its private half, a short RSA key and one that is not for signatures are none; of two keys
that a token could mean neither is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from fumehood.gateway import strict_json
from fumehood.gateway.oauth.signed import Key

SET_BYTES = 64 * 1024
MAX_KEYS = 64
KEY_ID_CHARACTERS = 256
RSA_BITS = range(2048, 8193)
_EDWARDS = ("EdDSA", "Ed25519")
PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_CURVES: Mapping[tuple[object, object], tuple[str, ...]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): _EDWARDS,
}
Keys = Mapping[tuple[str, str], Key]


class NoKeysError(ValueError):
    """The text is no set of keys with which anything could be verified."""


def keys_of(text: bytes, algorithms: Collection[str]) -> Keys:
    """The keys of a set by `kid` and algorithm, for these algorithms. Raises NoKeysError."""
    if len(text) > SET_BYTES:
        raise NoKeysError(f"it is over {SET_BYTES} bytes")
    try:
        found = strict_json.parse(text)
    except ValueError as error:
        raise NoKeysError(f"it is {error}") from error
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise NoKeysError(f"it has no `keys`, a list of at most {MAX_KEYS}")
    keys: dict[tuple[str, str], Key] = {}
    twice = set()
    for each in listed:
        key = public_key(each)
        if key is None:
            continue
        for place in _places(each, key, algorithms):
            if place in keys:
                twice.add(place)
            keys[place] = key
    usable = {place: key for place, key in keys.items() if place not in twice}
    if not usable:
        raise NoKeysError(f"none of its keys has a `kid` and is for {', '.join(algorithms)}")
    return usable


def public_key(found: object) -> Key | None:
    """A public key that can verify signatures, or None."""
    if not isinstance(found, dict) or any(name in found for name in PRIVATE):
        return None
    uses = found.get("key_ops", ["verify"])
    if found.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        return None
    try:
        match found.get("kty"):
            case "EC" if ("EC", found.get("crv")) in _CURVES:
                return ECKey.import_key(_members(found, "crv", "x", "y"))
            case "OKP" if ("OKP", found.get("crv")) in _CURVES:
                return OKPKey.import_key(_members(found, "crv", "x"))
            case "RSA" if _bits(found["n"]) in RSA_BITS and _bits(found["e"]) <= 32:
                return RSAKey.import_key(_members(found, "n", "e"))
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None  # what nobody can use is passed over: a set may have keys for others
    return None


def algorithms_of(key: Key) -> tuple[str, ...]:
    """What a key can verify."""
    if isinstance(key, RSAKey):
        return ("RS256", "PS256")
    return _CURVES[key.key_type, key.curve_name]


def _members(found: Mapping[str, Any], *names: str) -> Any:
    """What makes it this key, and no member with another meaning to a library."""
    return {"kty": found["kty"], **{name: found[name] for name in names}}


def _bits(number: str) -> int:
    """How long a number is; measured before the library works with it, and complains of a short one on standard error."""
    return int.from_bytes(urlsafe_b64decode(number.encode()), "big").bit_length()


def _places(found: Mapping[str, Any], key: Key, algorithms: Collection[str]) -> Iterator[tuple[str, str]]:
    name, only = found.get("kid"), found.get("alg")
    if not isinstance(name, str) or not 0 < len(name) <= KEY_ID_CHARACTERS:
        return
    for algorithm in algorithms_of(key):
        same = only in (None, algorithm) or (only in _EDWARDS and algorithm in _EDWARDS)
        if algorithm in algorithms and same:
            yield name, algorithm

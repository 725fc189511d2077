"""What a client that is not let in is told (RFC 6750, RFC 9449), and where to find out more (RFC 9728 section 5). Pure.

What is written into a header is ours and the operator's: of a client's token or proof nothing is repeated.
"""

from __future__ import annotations

from fumehood.gateway.http_head import Refusal
from fumehood.gateway.oauth.signed import UnfitError
from fumehood.oauth_config import PROOF_ALGORITHMS, Binding, OAuthConfig

_DPOP_ERRORS = frozenset({"invalid_dpop_proof", "use_dpop_nonce"})
Fields = tuple[tuple[bytes, bytes], ...]


def refusal(config: OAuthConfig, error: UnfitError, nonce: str) -> Refusal:
    """The answer to a request whose token or proof is not believed, or which has none (`error.error` is empty then)."""
    fresh: Fields = ((b"dpop-nonce", nonce.encode()),) if config.binding.takes_proofs else ()
    if error.status == 403 and error.error != "insufficient_scope":
        return Refusal(403, str(error), fresh)  # no other token of this subject's would help
    return Refusal(error.status, str(error), (*_challenges(config, error), *fresh))


def _challenges(config: OAuthConfig, error: UnfitError) -> Fields:
    said = [] if not error.error else [f'error="{error.error}"', f'error_description="{error}"']
    if config.scopes:
        said.append(f'scope="{" ".join(config.scopes)}"')
    said.append(f'resource_metadata="{config.description_url}"')
    about_proof = error.error in _DPOP_ERRORS
    made = []
    if config.binding is not Binding.DPOP and not about_proof:
        made.append(", ".join(['Bearer realm="fumehood"', *said]))
    if about_proof or config.binding in (Binding.DPOP, Binding.EITHER):
        made.append(", ".join([f'DPoP algs="{" ".join(PROOF_ALGORITHMS)}"', *said]))
    return tuple((b"www-authenticate", each.encode()) for each in made)

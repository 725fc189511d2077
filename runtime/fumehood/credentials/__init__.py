"""The credentials of one call: issued when its box is there, revoked however the call is left; and the sweep for what was not."""

from fumehood.credentials.leasing import lease
from fumehood.credentials.revoking import revoke_claimed
from fumehood.credentials.sweeping import sweep, sweeping

__all__ = ["lease", "revoke_claimed", "sweep", "sweeping"]

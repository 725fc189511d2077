"""The credentials of one call: issued when its box is there, revoked however the call is left."""

from fumehood.credentials.leasing import lease

__all__ = ["lease"]

"""The ledger process: a uid of its own, the only one that touches the database."""

from fumehood.ledger.serve import serve

__all__ = ["serve"]

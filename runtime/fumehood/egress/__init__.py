"""A box's only way out: names, and nothing else, that its profile lists."""

from fumehood.egress.gating import gate

__all__ = ["gate"]

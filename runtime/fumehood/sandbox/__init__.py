"""The box of a call: planned from profile and image, held for the length of the call, its changes settled."""

from fumehood.sandbox.lifetime import Box, box, settle
from fumehood.sandbox.planning import plan

__all__ = ["Box", "box", "plan", "settle"]

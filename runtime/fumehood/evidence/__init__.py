"""The record of a call: opened before any effect, closed last, whatever happens in between."""

from fumehood.evidence.record import STAGES, Log, record

__all__ = ["STAGES", "Log", "record"]

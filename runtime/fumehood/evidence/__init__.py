"""The record of a call: opened before any effect, closed last, whatever happens in between."""

from fumehood.evidence.record import Log, record, stage

__all__ = ["Log", "record", "stage"]

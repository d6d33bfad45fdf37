"""Rows that the engine does not answer as expected yet, and what it answers."""

PENDING: dict[str, str] = {}
PENDING_LONG: dict[str, str] = {}
"""The same of long runs, which are traced."""

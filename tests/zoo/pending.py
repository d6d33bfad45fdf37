# ruff: noqa: E501
"""Rows that the engine does not answer as expected yet, and what it answers."""

PENDING: dict[str, str] = {
    "Complex numbers and dtypes: autocast to bfloat16 in the forward pass": "REFUSED The derivative of a training step must be that of its gradient, but beside difference quotients it is off by 0.3%",
}
PENDING_LONG: dict[str, str] = {}
"""The same of long runs, which are traced."""

"""A run forward and a sweep back, and which states are kept for it."""

"""Tangents of the state that are carried along a run."""

"""Hyperparameter optimization for deep learning: three interchangeable tuners behind one Study."""

__version__ = "0.1.0.dev0"

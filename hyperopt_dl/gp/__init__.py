"""Gaussian processes whose kernel is a sum over learned groups of dimensions.

Pure functions of tensors in float64, one idea a file. Points lie in the unit cube; a categorical
dimension holds the index of its choice. Values are standardised and negated once, at the border to
the tuner, so everything in here maximises.
"""

"""The derivative of one step of a training."""

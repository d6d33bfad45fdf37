"""The derivatives of a training loss: by autograd, or by graphs that were traced from it once."""

# ruff: noqa: E501
"""Rows that the engine does not answer as expected yet, and what it answers."""

PENDING: dict[str, str] = {
    "Complex numbers and dtypes: autocast to bfloat16 in the forward pass": "REFUSED The derivative of a training step must be that of its gradient, but beside difference quotients it is off by 0.3%",
    "ForwardTuner in a loop: networks: BatchNorm1d": "WRONG d/dlr: got 0.211481, right [0.215244, 0.215244]",
    "ForwardTuner in a loop: networks: spectral_norm": "WRONG d/dlr: got 0.480895, right [0.481183, 0.481183]",
    "ForwardTuner in a loop: networks: checkpoint(use_reentrant=True)": "ERROR RuntimeError When use_reentrant=True, torch.utils.checkpoint is incompatible with .grad() or passing an `inputs` parameter to .backward(). To resolve this error, yo",
    "ForwardTuner in a loop: networks: a Function whose backward detaches": "WRONG d/dlr: got 0.696903, right [0.705478, 0.705478]",
    "ForwardTuner in a loop: networks: gradient reversal": "WRONG d/dlr: got 0.461784, right [0.610652, 0.610652]",
    "ForwardTuner in a loop: networks: a sign with a straight-through Function": "WRONG d/dlr: got 0.773033, right [0.645080, 0.645080]",
    "ForwardTuner in a loop: networks: SimSiam": "WRONG d/dlr: got -0.467429, right [-2.990822, -2.990822]",
    "ForwardTuner in a loop: networks: a target under no_grad (TD)": "WRONG d/dlr: got -7.778441, right [1.090813, 1.090813]",
    "ForwardTuner in a loop: networks: a VQ-VAE": "WRONG d/dlr: got -2.477011, right [-1.230846, -1.230846]",
    "ForwardTuner in a loop: networks: a moving average in a buffer": "WRONG d/dlr: got 0.707005, right [0.692111, 0.692111]",
    "ForwardTuner in a loop: networks: a momentum teacher inside the module (BYOL)": "WRONG d/dlr: got -0.876437, right [-0.120499, -0.120499]",
}
PENDING_LONG: dict[str, str] = {}
"""The same of long runs, which are traced."""

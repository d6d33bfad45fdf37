"""Whether a trace of a step is worth its time in a run.

A replayed step leaves out what autograd does around each operator, and computes as much. So what a
trace saves at a step, and what it takes to make, both grow with the nodes of autograd's graph; what
it takes to be compared with autograd is some eager steps. On a network of large tensors a replay
saves next to nothing, and those steps are all that counts.

The constants are from one core of a server, float32, batches of 16 and 128; their ratio, about a
hundred steps, is that of Python's work to Python's work, and holds on other machines.
"""

SAVED = 8e-6
"""Seconds that a replayed step saves for each node; 5e-6 to 24e-6 where it saved anything."""
TRACED = 8e-4
"""Seconds to trace, divide and write out a step for each node; 6e-4 to 18e-4."""
PROBED = 10
"""Eager steps that the comparisons of a new trace take as long as; 8 to 40."""


def pays(nodes: int, eager_seconds: float, steps: int) -> bool:
    """Return whether a run is over sooner with a trace of its step.

    Among eight networks, with two sizes of a batch and runs of 20 to 3000 steps, the time of the
    choice was at most 1.24 times that of the better one, and 1.01 times on average.

    Args:
        nodes: The nodes of autograd's graph of the gradient, as ``eager.functions_of`` finds them.
            A replay has about three operators for each.
        eager_seconds: Of one eager step that is linearized and pulled once. Measured seconds make
            the choice, and with it the last bits of a result, differ between two runs of a script.
        steps: Steps that are replayed, of all runs that share the trace.
    """
    return steps * SAVED * nodes > TRACED * nodes + PROBED * eager_seconds

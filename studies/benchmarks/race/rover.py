"""The rover, in 60 dimensions, written from its description.

It is a problem of Wang, Gehring, Kohli and Jegelka ("Batched Large-scale Bayesian Optimization in
High-dimensional Spaces", AISTATS 2018).

A rover drives along a B-spline with 30 points in the plane, from (0.05, 0.05) to (0.95, 0.95). Its
reward is 5 minus the cost of the way: the integral of 0.05, and of 20 more inside of obstacles or
outside of the unit square, over the length, and 10 times the L1 distance of both ends from where
they should be. Here the obstacles, 110 squares of side 0.05, are drawn by the seed. The regret is
the cost, that is 5 minus the reward; its least value is not known, but it is above 0.063, the cost
of the straight line in free space.
"""

import numpy as np
from scipy.interpolate import BSpline

from studies.benchmarks.race.problem import Point, Problem, on_cube

START, GOAL = np.array([0.05, 0.05]), np.array([0.95, 0.95])
POINTS, OBSTACLES, SIDE = 30, 110, 0.05
CRASH, DISTANCE, MISS = 20.0, 0.05, 10.0
_DEGREE, _PIECES = 3, 1000


def rover(seed: int) -> Problem:
    """The rover in 60 dimensions: the coordinates of its points, in [-0.1, 1.1]."""
    centres = obstacles(np.random.default_rng(seed))
    return on_cube(2 * POINTS, lambda u: cost(1.2 * u.reshape(POINTS, 2) - 0.1, centres))


def obstacles(rng: np.random.Generator) -> Point:
    """Return the centres of obstacles, none of which lies on the start or the goal."""
    centres = rng.random((10 * OBSTACLES, 2))
    ends = np.stack([START, GOAL])
    away = np.abs(centres[:, None] - ends).max(-1).min(-1) > SIDE
    return np.asarray(centres[away][:OBSTACLES])


def cost(points: Point, centres: Point) -> float:
    """Return the cost of the way that points `[30, 2]` control between obstacles."""
    way = trajectory(points)
    middles, lengths = (way[1:] + way[:-1]) / 2, np.linalg.norm(np.diff(way, axis=0), axis=1)
    crashed = (np.abs(middles[:, None] - centres) < SIDE / 2).all(-1).any(-1)
    crashed |= ((middles < 0) | (middles > 1)).any(-1)
    missed = np.abs(points[0] - START).sum() + np.abs(points[-1] - GOAL).sum()
    return float(lengths @ (DISTANCE + CRASH * crashed) + MISS * missed)


def trajectory(points: Point) -> Point:
    """Return the way as many short pieces: it begins and ends at the first and the last point."""
    inner = np.linspace(0, 1, len(points) - _DEGREE + 1)
    knots = np.concatenate([np.zeros(_DEGREE), inner, np.ones(_DEGREE)])
    return np.asarray(BSpline(knots, points, _DEGREE)(np.linspace(0, 1, _PIECES + 1)))

"""A number that no derivative is wanted in."""


class Constant(float):
    """A float that an estimator hands to the training as it is, and does not differentiate.

    Any other floating hyperparameter is differentiated. Of one that is structure, such as a dropout
    rate that a model factory reads, there is no derivative; of one that stays where it is, the
    derivative is work for nothing.
    """

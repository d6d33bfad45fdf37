"""Every exception that hyperopt_dl raises on purpose.

A message says what must hold, what was got, and what to do about it::

    HyperoptError
    ├── SpaceError     (ValueError)    a dimension or a value outside what it may be
    ├── TrainingError  (ValueError)    a training run that cannot be carried out as described
    ├── StudyError     (RuntimeError)  a study that cannot start, or has nothing to answer with
    │   └── ObjectivesError (ValueError)   several objectives, and a tuner for one
    └── ExecutorError  (RuntimeError)  a workload that cannot reach its workers

All of them are raised before trial 0, or by the call that was wrong. What goes wrong *inside* a
trial is no exception but data: the trial ends as FAIL and its ``failure`` attribute names the kind.
"""


class HyperoptError(Exception):
    """The root of the tree: catch it to catch them all."""


class SpaceError(HyperoptError, ValueError):
    """A dimension is ill-formed, or a value lies outside its dimension."""


class TrainingError(HyperoptError, ValueError):
    """A training run, its optimizer or its data cannot be used as described."""


class StudyError(HyperoptError, RuntimeError):
    """A study cannot be opened or run as asked, or has no answer yet."""


class ObjectivesError(StudyError, ValueError):
    """A study has several objectives, and its tuner is made for one.

    Optuna's own samplers raise a `ValueError` here, and its test suite asks for one.
    """


class ExecutorError(HyperoptError, RuntimeError):
    """A workload cannot be sent to its workers, or the workers cannot start."""

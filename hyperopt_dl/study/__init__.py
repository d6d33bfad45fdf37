"""The study: trials proposed by a tuner, run by an executor, kept in Optuna's storage.

``study.py`` is what users see; ``loop.py`` decides when trials start; ``ledger.py`` asks and tells.
"""

from hyperopt_dl.study.study import Study

__all__ = ["Study"]

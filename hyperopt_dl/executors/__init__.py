"""Where trials run: in this process, or in worker processes pinned to devices."""

from hyperopt_dl.executors.executor import Executor, Finished, Pool
from hyperopt_dl.executors.processes import Processes
from hyperopt_dl.executors.serial import Serial

__all__ = ["Executor", "Finished", "Pool", "Processes", "Serial"]

"""A study of many runs: what its file says, its folder, and the processes that work it off."""

from fedleak.sweep.folder import SweepFolder, finished_rows
from fedleak.sweep.observer import SweepObserver, SweepProgress
from fedleak.sweep.schedule import run_command, run_sweep
from fedleak.sweep.study import Cell, Choice, Study, expand, load_study

__all__ = [
    "Cell",
    "Choice",
    "Study",
    "SweepFolder",
    "SweepObserver",
    "SweepProgress",
    "expand",
    "finished_rows",
    "load_study",
    "run_command",
    "run_sweep",
]

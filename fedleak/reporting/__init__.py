"""What a person sees of a run: live progress, TensorBoard, figures, tables."""

from fedleak.reporting.display import Display
from fedleak.reporting.figures import write_figures
from fedleak.reporting.tables import paths_line, plugin_table, results_table
from fedleak.reporting.tensorboard import TensorBoard

__all__ = [
    "Display",
    "TensorBoard",
    "paths_line",
    "plugin_table",
    "results_table",
    "write_figures",
]

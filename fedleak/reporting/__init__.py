"""What a person sees of a run: live progress, TensorBoard, figures, tables."""

from fedleak.reporting.display import Display
from fedleak.reporting.figures import Figures, write_figures
from fedleak.reporting.report import write_report
from fedleak.reporting.sweep_display import SweepDisplay
from fedleak.reporting.sweep_picture import write_picture
from fedleak.reporting.sweep_rounds import write_rounds
from fedleak.reporting.sweep_tables import write_tables
from fedleak.reporting.tables import paths_line, plugin_table, results_table, rounds_table
from fedleak.reporting.tensorboard import TensorBoard

__all__ = [
    "Display",
    "Figures",
    "SweepDisplay",
    "TensorBoard",
    "paths_line",
    "plugin_table",
    "results_table",
    "rounds_table",
    "write_figures",
    "write_picture",
    "write_report",
    "write_rounds",
    "write_tables",
]

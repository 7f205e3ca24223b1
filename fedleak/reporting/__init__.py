"""Output of runs and sweeps for readers: progress, TensorBoard, figures, tables, HTML report."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

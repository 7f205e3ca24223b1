"""What a person sees of a run: live progress, TensorBoard, figures, tables."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

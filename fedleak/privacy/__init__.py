"""Privacy budgets that are spent, and ceilings on what any attack can reconstruct."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

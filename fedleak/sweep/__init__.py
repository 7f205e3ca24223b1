"""A study of many runs: its file, its folder, and the processes that run its cells."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

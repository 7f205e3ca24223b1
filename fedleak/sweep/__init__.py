"""A study of many runs: what its file says, its folder, and the processes that work it off."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

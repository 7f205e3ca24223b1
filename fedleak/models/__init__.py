"""LightningModules that clients train, and variational bottlenecks (PRECODE, CVB)."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

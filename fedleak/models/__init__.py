"""LightningModules that clients train, and the bottleneck that is said to protect them."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

"""Audit of somebody else's Flower app: what its server could learn, no line of it changed."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

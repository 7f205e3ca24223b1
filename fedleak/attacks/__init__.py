"""Gradient inversion attacks: they reconstruct clients' inputs from their updates."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

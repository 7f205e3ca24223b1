"""Defences against gradient inversion: a client changes its update before it sends it."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

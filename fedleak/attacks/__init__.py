"""Attacks that reconstruct clients' inputs from what they sent."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

"""Malicious servers: they choose what they send to clients, and read what comes back."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

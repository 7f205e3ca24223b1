"""Federated learning on Flower: clients, server, malicious strategy, simulation."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

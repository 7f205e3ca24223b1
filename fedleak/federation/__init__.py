"""Flower and nothing but Flower: clients, server, malicious strategy, simulation."""

from fedleak.federation.engine.client import client_app
from fedleak.federation.engine.simulation import simulate
from fedleak.federation.strategy import MaliciousStrategy

__all__ = ["MaliciousStrategy", "client_app", "simulate"]

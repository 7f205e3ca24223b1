"""Defences against gradient inversion: a client changes its update before it sends it."""

from fedleak.defenses.base import Defense, Outgoing, protect
from fedleak.defenses.clipping import Clipping
from fedleak.defenses.dp_sgd import DPSGD
from fedleak.defenses.noise import NoisyGradients
from fedleak.defenses.ppp import PPP
from fedleak.defenses.pruning import Pruning
from fedleak.defenses.sign import Sign
from fedleak.defenses.soteria import Soteria

__all__ = [
    "DPSGD",
    "PPP",
    "Clipping",
    "Defense",
    "NoisyGradients",
    "Outgoing",
    "Pruning",
    "Sign",
    "Soteria",
    "protect",
]

"""What does federated training leak? Attacks on real federations of Flower and Lightning."""

from importlib.metadata import version

from fedleak.attacks import IGA, NRA, Attack, Reconstruction
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.experiment import attack, run
from fedleak.updates import GroundTruth, InterceptedUpdate, Knowledge

__version__ = version("fedleak")

__all__ = [
    "IGA",
    "NRA",
    "Attack",
    "BadInput",
    "GroundTruth",
    "InterceptedUpdate",
    "Knowledge",
    "Reconstruction",
    "RunConfig",
    "__version__",
    "attack",
    "run",
]

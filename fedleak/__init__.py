"""What does federated training leak? Attacks on real federations of Flower and Lightning."""

import os
from importlib.metadata import version

# A large tensor that is made anew costs several times as long in small pages of memory as in large
# ones. torch reads the first when it makes its first tensor, the C library of Linux the second when
# a process starts: a federation's clients, and the runs of a sweep.
os.environ["THP_MEM_ALLOC_ENABLE"] = os.environ.get("THP_MEM_ALLOC_ENABLE", "1")
os.environ["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

from fedleak.attacks import IGA, NRA, Attack, Reconstruction
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.experiment import attack_run, run
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.truth import GroundTruth
from fedleak.updates.update import InterceptedUpdate

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
    "attack_run",
    "run",
]

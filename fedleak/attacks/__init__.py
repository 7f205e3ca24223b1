"""Attacks that reconstruct clients' inputs from what they sent."""

from fedleak.attacks.analytic import Analytic
from fedleak.attacks.base import Attack, Problem, Progress, Reconstruction
from fedleak.attacks.dlg import DLG, IDLG
from fedleak.attacks.exact import RGAP, ExactNRA
from fedleak.attacks.iga import IGA
from fedleak.attacks.matching import GradientMatching
from fedleak.attacks.nra import NRA
from fedleak.attacks.partial import PartialIGA

__all__ = [
    "DLG",
    "IDLG",
    "IGA",
    "NRA",
    "RGAP",
    "Analytic",
    "Attack",
    "ExactNRA",
    "GradientMatching",
    "PartialIGA",
    "Problem",
    "Progress",
    "Reconstruction",
]

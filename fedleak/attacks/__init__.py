"""Gradient inversion attacks: they reconstruct clients' inputs from their updates."""

from fedleak.attacks.analytic import Analytic
from fedleak.attacks.base import Attack, Problem, Progress, Reconstruction
from fedleak.attacks.dlg import DLG, IDLG
from fedleak.attacks.exact_nra import RGAP, ExactNRA
from fedleak.attacks.iga import IGA
from fedleak.attacks.iga_partial import PartialIGA
from fedleak.attacks.matching.engine import GradientMatching
from fedleak.attacks.nra import NRA

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

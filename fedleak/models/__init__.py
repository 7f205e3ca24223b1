"""LightningModules that clients train, and the bottleneck that is said to protect them."""

from pytorch_lightning import LightningModule

from fedleak.models.bottleneck import (
    Bottleneck,
    ConvolutionalBottleneck,
    Precode,
    VariationalBottleneck,
    kl_penalty,
)
from fedleak.models.classifier import ImageClassifier
from fedleak.models.fedvae import FedVAE
from fedleak.models.lenet import LeNet, LeNetR
from fedleak.models.mlp import DMLP, SMLP
from fedleak.models.noise import DropoutNoise, Noise, NormalNoise, inject, noise_slots, record
from fedleak.models.resnet import ResNet18

__all__ = [
    "DMLP",
    "SMLP",
    "Bottleneck",
    "ConvolutionalBottleneck",
    "DropoutNoise",
    "FedVAE",
    "ImageClassifier",
    "LeNet",
    "LeNetR",
    "LightningModule",
    "Noise",
    "NormalNoise",
    "Precode",
    "ResNet18",
    "VariationalBottleneck",
    "inject",
    "kl_penalty",
    "noise_slots",
    "record",
]

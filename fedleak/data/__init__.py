"""The private data: image sets, and how they are split over clients."""

from fedleak.data.base import (
    ImageData,
    ImageSet,
    channel_statistics,
    denormalise,
    normalise,
    valid_range,
)
from fedleak.data.cifar import CIFAR10, CIFAR100
from fedleak.data.folder import ImageFolder, MedicalMNIST
from fedleak.data.npz import Npz
from fedleak.data.partition import partition
from fedleak.data.photos import Photos

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "ImageData",
    "ImageFolder",
    "ImageSet",
    "MedicalMNIST",
    "Npz",
    "Photos",
    "channel_statistics",
    "denormalise",
    "normalise",
    "partition",
    "valid_range",
]

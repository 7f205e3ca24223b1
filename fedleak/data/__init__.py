"""The private data: image and recommender sets, and how they are split over clients."""

from fedleak.data.base import PrivateData
from fedleak.data.cifar import CIFAR10, CIFAR100
from fedleak.data.image_folder import ImageFolder, MedicalMNIST
from fedleak.data.images import (
    ImageData,
    ImageSet,
    channel_statistics,
    denormalise,
    normalise,
    valid_range,
)
from fedleak.data.interactions import FoldInSet, InteractionSet, UserSplit, split_users
from fedleak.data.lastfm import LastFM
from fedleak.data.movielens import MovieLens
from fedleak.data.npz import Npz
from fedleak.data.partition import partition
from fedleak.data.photos import Photos
from fedleak.data.planted import PlantedGroups
from fedleak.data.recommender import RecommenderData
from fedleak.data.steam import Steam

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "FoldInSet",
    "ImageData",
    "ImageFolder",
    "ImageSet",
    "InteractionSet",
    "LastFM",
    "MedicalMNIST",
    "MovieLens",
    "Npz",
    "Photos",
    "PlantedGroups",
    "PrivateData",
    "RecommenderData",
    "Steam",
    "UserSplit",
    "channel_statistics",
    "denormalise",
    "normalise",
    "partition",
    "split_users",
    "valid_range",
]

"""The private data: image and recommender sets, and how they are split over clients."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

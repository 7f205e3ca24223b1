"""Private data: image and recommender data sets, and their partition over clients."""

from fedleak.lazy import catalogue

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)

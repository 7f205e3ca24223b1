"""What does federated training leak? Attacks on real federations of Flower and Lightning."""

from importlib.metadata import version

from fedleak.lazy import catalogue

__version__ = version("fedleak")

__getattr__, __dir__, __all__ = catalogue(__name__, __file__)
__all__ += ["__version__"]

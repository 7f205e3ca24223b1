from .base import Change as Change
from .base import Crafted as Crafted
from .base import MaliciousServer as MaliciousServer
from .base import Reading as Reading
from .hyperparameters import Hyperparameters as Hyperparameters

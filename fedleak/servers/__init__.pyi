from .base import Change as Change
from .base import Crafted as Crafted
from .base import MaliciousServer as MaliciousServer
from .base import Reading as Reading
from .bins import Bins as Bins
from .hyperparameters import Hyperparameters as Hyperparameters

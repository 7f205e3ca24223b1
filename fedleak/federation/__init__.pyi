from .engine.client import client_app as client_app
from .engine.simulation import simulate as simulate
from .strategy import MaliciousStrategy as MaliciousStrategy

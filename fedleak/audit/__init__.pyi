from .app import AuditSettings as AuditSettings
from .app import FlowerApp as FlowerApp
from .app import read_app as read_app

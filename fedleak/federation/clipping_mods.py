"""Flower's client mods that clip, as classes that a configuration can name."""

from collections.abc import Callable
from typing import ClassVar

from flwr.app import Context, Message
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable


class FixedClipping:
    """Flower's ``fixedclipping_mod``.

    It needs the strategy ``DifferentialPrivacyClientSideFixedClipping``, which sends the norm.
    """

    function: ClassVar[Callable[..., Message]] = staticmethod(fixedclipping_mod)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """See Flower's ``fixedclipping_mod``."""
        return self.function(message, context, call_next)


class AdaptiveClipping(FixedClipping):
    """Flower's ``adaptiveclipping_mod``.

    It needs the strategy ``DifferentialPrivacyClientSideAdaptiveClipping``.
    """

    function: ClassVar[Callable[..., Message]] = staticmethod(adaptiveclipping_mod)

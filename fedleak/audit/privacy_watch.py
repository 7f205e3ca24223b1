"""Notes which mechanisms of differential privacy an app uses, with no line of its code changed.

Methods of Flower and Opacus are replaced within a block by ones that note their settings and call
the original; nothing that they compute changes.
"""

import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from fedleak.audit.facts import MechanismFacts
from fedleak.errors import first_line
from fedleak.federation.mechanisms import CENTRAL, FIXED, needed_mod, takes_the_mean

# Both of Flower's APIs have them.
MODS = ("flwr.clientapp.mod", "flwr.client.mod")
STRATEGIES = {"flwr.serverapp.strategy": "configure_train", "flwr.server.strategy": "configure_fit"}
CLIPPED_BY = {
    "compute_clip_model_update": "fixedclipping_mod",
    "compute_adaptive_clip_model_update": "adaptiveclipping_mod",
    # The older API's mod clips the change itself.
    "adaptive_clip_inputs_inplace": "adaptiveclipping_mod",
}
"""Function that the module of Flower's clipping mods calls -> the mod."""
OPTIMIZER, SAMPLER = "opacus.optimizers.optimizer", "opacus.utils.uniform_sampler"
MOST = 10_000  # different settings of mechanisms that are kept


class ClientMechanisms:
    """What was seen of a client's mechanisms within :func:`client_mechanisms`."""

    def __init__(self, faults: list[str]) -> None:
        self._faults = faults
        self._thread = threading.get_ident()
        self._found: dict[MechanismFacts, int] = {}
        self._stack = ExitStack()
        self._opacus: set[str] = set()
        self._poisson = False
        self._max_norm: float | None = None

    @property
    def facts(self) -> tuple[MechanismFacts, ...]:
        """What was seen: each mechanism with the number of times that it was used."""
        return tuple(
            MechanismFacts(facts.name, facts.settings, steps)
            for facts, steps in self._found.items()
        )

    def look_for_opacus(self) -> None:
        """Watch Opacus, if it is imported by now: an app may do so only when it trains."""
        for name, watch in ((OPTIMIZER, self._watch_optimizer), (SAMPLER, self._watch_sampler)):
            module = sys.modules.get(name)
            # A module that is being imported lacks its classes still.
            if name not in self._opacus and module is not None and watch(module):
                self._opacus.add(name)

    def _note(self, name: str, settings: tuple[tuple[str, Any], ...]) -> None:
        facts = MechanismFacts(name, settings)
        if threading.get_ident() == self._thread and (
            facts in self._found or len(self._found) < MOST
        ):
            self._found[facts] = self._found.get(facts, 0) + 1

    def _replace(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        """Call a function before another one, with its arguments; nothing else changes."""
        original = vars(owner)[name]

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            _quietly(self._faults, note, *args)
            return original(*args, **kwargs)

        setattr(owner, name, call)
        self._stack.callback(setattr, owner, name, original)

    def _watch_mods(self) -> None:
        for package in MODS:
            local, central = (
                importlib.import_module(f"{package}.{name}")
                for name in ("localdp_mod", "centraldp_mods")
            )
            self._replace(local.LocalDpMod, "__call__", self._note_local)
            for function, mod in CLIPPED_BY.items():
                if function in vars(central):
                    self._replace(central, function, functools.partial(self._note_clip, mod))

    def _note_local(self, mod: Any, *_rest: Any) -> None:
        names = ("clipping_norm", "sensitivity", "epsilon", "delta")
        self._note("local_dp_mod", tuple((name, float(getattr(mod, name))) for name in names))

    def _note_clip(self, mod: str, *_args: Any, **_kwargs: Any) -> None:
        self._note(mod, ())

    def _watch_optimizer(self, module: Any) -> bool:
        kind = getattr(module, "DPOptimizer", None)
        if kind is None:
            return False
        # Not `pre_step`, which subclasses replace: all of them add noise once in each step.
        self._replace(kind, "scale_grad", self._note_step)
        return True

    def _watch_sampler(self, module: Any) -> bool:
        kind = getattr(module, "UniformWithReplacementSampler", None)
        if kind is None:
            return False
        self._replace(kind, "__iter__", self._note_draw)
        return True

    def _note_draw(self, *_args: Any) -> None:
        if threading.get_ident() == self._thread:
            self._poisson = True

    def _note_step(self, optimizer: Any) -> None:
        rate = None
        if optimizer.step_hook is not None:
            # The rate with which Opacus's own accountant counts.
            seen = inspect.getclosurevars(optimizer.step_hook).nonlocals
            rate = seen.get("sample_rate")
            rate = None if rate is None else float(rate) * optimizer.accumulated_iterations
        # Where the norm adapts, the first one stands for all: it changes no epsilon.
        self._max_norm = self._max_norm or float(optimizer.max_grad_norm)
        settings = (
            ("optimizer", type(optimizer).__name__),
            ("noise_multiplier", float(optimizer.noise_multiplier)),
            ("max_norm", self._max_norm),
            ("sampling_rate", rate),
            ("poisson", self._poisson),
        )
        self._note("dp_sgd", settings)


@contextmanager
def client_mechanisms(faults: list[str]) -> Iterator[ClientMechanisms]:
    """Within the block, Flower's mods and Opacus's optimisers that this thread uses are noted.

    Args:
        faults: takes up errors in looking on, a sentence each.
    """
    seen = ClientMechanisms(faults)
    with seen._stack:
        seen._watch_mods()
        seen.look_for_opacus()
        yield seen


@contextmanager
def server_mechanisms(found: list[MechanismFacts], faults: list[str]) -> Iterator[None]:
    """Within the block, Flower's strategies with central noise that this thread uses are noted.

    Args:
        found: takes up each, when it begins a round for the first time.
        faults: takes up errors in looking on, a sentence each.
    """
    thread, known = threading.get_ident(), set[int]()

    def note(strategy: Any) -> None:
        if threading.get_ident() == thread and id(strategy) not in known:
            known.add(id(strategy))
            found.append(_of_strategy(strategy))

    with ExitStack() as stack:
        for package, method in STRATEGIES.items():
            module = importlib.import_module(package)
            for name in CENTRAL:
                kind = getattr(module, name)
                original = getattr(kind, method)
                own = method in vars(kind)
                setattr(kind, method, _noting(original, note, faults))
                if own:
                    stack.callback(setattr, kind, method, original)
                else:
                    stack.callback(delattr, kind, method)
        yield


def _noting(
    original: Callable[..., Any], note: Callable[[Any], None], faults: list[str]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def configure(self: Any, *args: Any, **kwargs: Any) -> Any:
        _quietly(faults, note, self)
        return original(self, *args, **kwargs)

    return configure


def _of_strategy(strategy: Any) -> MechanismFacts:
    kinds = [kind.__name__ for kind in type(strategy).__mro__]
    fixed = any(name in kinds for name in FIXED)
    settings: list[tuple[str, Any]] = [
        ("noise_multiplier", float(strategy.noise_multiplier)),
        ("clipping_norm", float(strategy.clipping_norm)),
        ("clients", int(strategy.num_sampled_clients)),
    ]
    if not fixed:
        settings.append(("clipped_count_stddev", float(strategy.clipped_count_stddev)))
    inner = strategy.strategy
    settings += [
        ("strategy", type(inner).__name__),
        ("takes_the_mean", takes_the_mean(inner)),
        ("needed_mod", needed_mod(strategy) or ""),
    ]
    return MechanismFacts("fixed_clipping" if fixed else "adaptive_clipping", tuple(settings))


def _quietly(faults: list[str], function: Callable[..., None], *args: Any) -> None:
    """Call what only looks on: no error of it reaches the app, but it is noted."""
    try:
        function(*args)
    except Exception as error:
        text = f"a mechanism is not known: {type(error).__name__}: {first_line(error)}"
        if text not in faults:
            faults.append(text)

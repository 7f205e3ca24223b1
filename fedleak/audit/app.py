"""A Flower app in a folder: its ServerApp, its ClientApp and its run config.

Reading an app imports its modules, which runs their code.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_dir, get_project_config, parse_config_args
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from fedleak.errors import BadInput, first_line, require, unknown_name
from fedleak.schema import check_keys, check_values

PYPROJECT = "pyproject.toml"
REFERENCE = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
# Names under which apps keep the number of rounds in their run config.
ROUNDS_KEYS = (
    "num-server-rounds", "num_server_rounds", "num-rounds", "num_rounds", "server-rounds", "rounds",
)  # fmt: skip


class _NoAttribute(Exception):
    """A module lacks the attribute that a reference names."""


@dataclass(frozen=True)
class AuditSettings:
    """The optional section ``[tool.fedleak]`` of an app's pyproject.toml.

    It says what cannot be seen from outside. A hyphen in a key counts as an underscore.

    Args:
        model: reference ``module:attribute`` of what makes the model when it is called without
            arguments. If None, it is the model whose weights the ServerApp takes, or the class that
            the clients train.
        loss: reference ``module:function`` of the loss of outputs and targets. If None, it is the
            loss function of torch that the clients call.
        mean: mean of each channel with which the clients normalise their inputs.
        std: standard deviation of each channel.
        value_range: lowest and highest value of the inputs before normalisation; see
            :class:`fedleak.updates.knowledge.Knowledge`.
        num_classes: number of classes. If None, the number of outputs of the last linear layer.
        clients: numbers of the clients whose updates are kept. If None, those of all.
        rounds: numbers of the rounds, from 1, whose updates are kept. If None, those of all.
    """

    model: str | None = None
    loss: str | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    value_range: tuple[float, float] | None = None
    num_classes: int | None = None
    clients: tuple[int, ...] | None = None
    rounds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("model", "loss"):
            reference = getattr(self, name)
            require(
                reference is None or REFERENCE.fullmatch(reference) is not None,
                f"Expected `tool.fedleak.{name}` to be a reference such as "
                f"`package.module:attribute`, got {reference!r:.100}.",
            )
        for name, least in (("clients", 0), ("rounds", 1)):
            numbers = getattr(self, name)
            require(
                numbers is None or (len(numbers) > 0 and min(numbers) >= least),
                f"Expected `tool.fedleak.{name}` to be one or more numbers from {least}, got "
                f"{numbers}.",
            )

    def keeps(self, round_: int, client: int) -> bool:
        """Whether the update of a client in a round is kept."""
        return (self.rounds is None or round_ in self.rounds) and (
            self.clients is None or client in self.clients
        )


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app in a folder.

    Args:
        folder: the folder of its pyproject.toml, absolute.
        server: reference ``module:attribute`` of its ServerApp.
        client: reference ``module:attribute`` of its ClientApp.
        run_config: its run config with the overrides, flattened as Flower does.
        settings: its section ``[tool.fedleak]``.
    """

    folder: Path
    server: str
    client: str
    run_config: dict[str, Any]
    settings: AuditSettings = field(default_factory=AuditSettings)

    def server_app(self) -> ServerApp:
        """Its ServerApp.

        Raises:
            BadInput: see :meth:`load`; if it is none.
        """
        found: ServerApp = self.load(self.server, "the `serverapp` of the app", ServerApp)
        return found

    def client_app(self) -> ClientApp:
        """Its ClientApp.

        Raises:
            BadInput: see :meth:`load`; if it is none.
        """
        found: ClientApp = self.load(self.client, "the `clientapp` of the app", ClientApp)
        return found

    def load(self, reference: str, what: str, kind: type | None = None) -> Any:
        """The object at a reference; its module is imported from the app's folder.

        The folder stays on the import path, from which a simulation's workers import as well.

        Args:
            reference: ``module:attribute``.
            what: what it refers to, for messages.
            kind: the class that it has to be of. If None, any.

        Raises:
            BadInput: if the reference is none, its module is missing or raises an error, it has no
                such attribute, or that is of another class.
        """
        require(
            REFERENCE.fullmatch(reference) is not None,
            f"Expected a reference such as `package.module:attribute` as {what}, got "
            f"{reference!r:.100}.",
        )
        module, _, attribute = reference.partition(":")
        try:
            found = load_app(reference, _NoAttribute, self.folder)
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if module == missing or module.startswith(f"{missing}."):
                raise BadInput(
                    f"Expected a module `{module}` in {self.folder} as {what} says, found none: "
                    f"correct {PYPROJECT}."
                ) from error
            raise BadInput(
                f"Expected to import `{module}`, {what}, but it needs `{missing}`, which is not "
                "installed: install the app's dependencies here."
            ) from error
        except _NoAttribute as error:
            raise BadInput(
                f"Expected `{attribute}` in the module `{module}` as {what} says, found none."
            ) from error
        except (Exception, SystemExit) as error:
            text = first_line(error) if isinstance(error, Exception) else repr(error)
            raise BadInput(
                f"Expected to import `{module}`, {what}, but its code raises "
                f"{type(error).__name__}: {text}"
            ) from error
        self._check_origin(module)
        require(
            kind is None or isinstance(found, kind),
            f"Expected `{reference}`, {what}, to be a "
            f"{kind.__name__ if kind else ''} of Flower, got {type(found).__name__}.",
        )
        return found

    def _check_origin(self, module: str) -> None:
        """Refuse a module of the same name that was imported from another folder before."""
        root = module.partition(".")[0]
        if not ((self.folder / root).is_dir() or (self.folder / f"{root}.py").is_file()):
            return  # an installed package
        origin = getattr(sys.modules[module], "__file__", None)
        require(
            origin is None or Path(origin).resolve().is_relative_to(self.folder),
            f"Expected the module `{module}` of {self.folder}, but this process has already "
            f"imported another one of this name from {origin}: audit the app in a process of its "
            "own.",
        )

    @property
    def rounds_key(self) -> str | None:
        """The key of the run config that holds the number of rounds; None if there is none."""
        return next((key for key in ROUNDS_KEYS if key in self.run_config), None)


def read_app(path: Path | str, overrides: Sequence[str] = ()) -> FlowerApp:
    """Read the Flower app in a folder and import its ServerApp and ClientApp.

    Args:
        path: a folder with a pyproject.toml that has the section ``[tool.flwr.app]``.
        overrides: changes of the run config as ``flwr run --run-config`` takes them: texts such as
            ``"num-server-rounds=3 lr=0.1"``, or the path of one TOML file.

    Raises:
        BadInput: if there is no such folder or app, a setting is wrong, or ServerApp or ClientApp
            cannot be loaded; see :meth:`FlowerApp.load`.
    """
    folder = Path(path).resolve()
    require(folder.is_dir(), f"Expected the folder of a Flower app at {path}, found none.")
    file = folder / PYPROJECT
    require(
        file.is_file(), f"Expected a Flower app with a {PYPROJECT} in {folder}, found no such file."
    )
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are such
        raise BadInput(f"Expected TOML in {file}, got a mistake: {first_line(error)}.") from error
    require(
        isinstance(tool, dict)
        and isinstance(tool.get("flwr"), dict)
        and isinstance(tool["flwr"].get("app"), dict),
        f"Expected a Flower app, with a section [tool.flwr.app] in {file}, found no such section.",
    )
    try:
        components = get_project_config(folder)["tool"]["flwr"]["app"]["components"]
        defaults = get_fused_config_from_dir(folder, {})
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = "; ".join(line.strip(" -") for line in str(error).splitlines()[:3])
        raise BadInput(
            f"Expected a Flower app in {file}, but Flower refuses it: {reason}."
        ) from error
    for name in ("serverapp", "clientapp"):
        require(
            isinstance(components.get(name), str),
            f"Expected `{name}` in [tool.flwr.app.components] of {file} to be a reference such as "
            f"`package.module:app`, got {components.get(name)!r:.60}.",
        )
    app = FlowerApp(
        folder,
        components["serverapp"],
        components["clientapp"],
        defaults | _read_overrides(overrides, defaults),
        _read_settings(tool.get("fedleak", {})),
    )
    app.server_app()
    app.client_app()
    return app


def _read_overrides(overrides: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any]:
    for text in overrides:
        # Flower leaves out what has no `=`.
        require(
            text.endswith(".toml") or all("=" in part for part in _parts(text)),
            f"Expected overrides of the run config as `key=value`, got {text!r:.100}.",
        )
    try:
        found = parse_config_args([text for text in overrides if text.strip()])
    except Exception as error:  # click's among them, which Flower raises for text that is no TOML
        reason = first_line(error)
        raise BadInput(
            f"Expected overrides of the run config as `key=value` in TOML, such as "
            f"`num-server-rounds=3 name='a'`, got {' '.join(overrides)!r:.100}: {reason}"
        ) from error
    for key in found:
        if key not in defaults:
            raise unknown_name("key of the run config", key, defaults)
    return found


def _parts(text: str) -> list[str]:
    """The parts of a text of overrides, split at spaces outside quotes."""
    return re.findall(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+", text)


def _read_settings(given: Any) -> AuditSettings:
    title = "[tool.fedleak]"
    if isinstance(given, dict):
        given = {str(key).replace("-", "_"): value for key, value in given.items()}
    else:
        check_keys(title, given, ())
    return AuditSettings(**check_values(title, given, AuditSettings, prefix="tool.fedleak"))

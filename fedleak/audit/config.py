"""``config.yaml`` of an audit's folder: what was audited, and with which settings."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from torch import Tensor

from fedleak.config import versions
from fedleak.errors import BadInput, require
from fedleak.runs.text_files import write_whole
from fedleak.runtime.safe_yaml import read_yaml
from fedleak.schema import check_values, shown

if TYPE_CHECKING:
    from fedleak.audit.app import FlowerApp

KIND = "audit"
# What a resumed audit may have otherwise: it changes neither the app's run nor what was answered.
FREE = ("app", "budget", "cpus_per_client", "gpus_per_client", "ray_address", "malicious")
# Files of an app whose content decides what it does.
SUFFIXES = (".py", ".toml")


@dataclass(frozen=True)
class AuditConfig:
    """The settings of an audit.

    Args:
        app: the app's folder.
        code: SHA-256 of the app's Python and TOML files.
        server: reference of its ServerApp.
        client: reference of its ClientApp.
        run_config: its run config with the overrides.
        settings: its section ``[tool.fedleak]``.
        clients: number of simulated clients.
        rounds: number of rounds; None if the app's run config decides.
        seed: seed of the attacks.
        budget: time for the attacks in seconds.
        public: name of the public samples; None if they are made up.
        public_code: SHA-256 of the public samples; None without any.
        cpus_per_client: CPUs that one client occupies.
        gpus_per_client: GPUs that one client occupies.
        ray_address: address of a Ray cluster; None for a private instance.
        malicious: whether servers that change what they send are tried.
    """

    app: str
    code: str
    server: str
    client: str
    run_config: dict[str, Any]
    settings: dict[str, Any]
    clients: int
    rounds: int | None
    seed: int
    budget: float
    public: str | None = None
    public_code: str | None = None
    cpus_per_client: float = 1.0
    gpus_per_client: float = 0.0
    ray_address: str | None = None
    malicious: bool = False

    @classmethod
    def of(
        cls,
        app: "FlowerApp",
        output: Path,
        public: tuple[str, Tensor, Tensor] | None = None,
        **settings: Any,
    ) -> Self:
        """The settings of an audit of an app.

        Args:
            app: the app.
            output: the audit's folder, which may be inside the app's and is no part of it.
            public: name, inputs and labels of public samples, or None.
            settings: ``clients``, ``rounds`` and the other fields that are not the app's.
        """
        name, *samples = public or (None,)
        return cls(
            app=str(app.folder), code=digest_of(app.folder, output), server=app.server,
            client=app.client, run_config=dict(app.run_config),
            settings=dataclasses.asdict(app.settings),
            public=name, public_code=_digest_of_samples(samples) if samples else None, **settings,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The name of the app's folder."""
        return Path(self.app).name

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def save(self, path: Path) -> None:
        """Write config.yaml: the settings, and the versions of what computes.

        Args:
            path: the file.
        """
        values = {"kind": KIND} | self.to_dict() | {"versions": versions()}
        write_whole(path, yaml.safe_dump(values, sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that :meth:`save` wrote.

        Args:
            path: the file.

        Raises:
            BadInput: if it is missing, damaged, or no audit's.
        """
        values = read_yaml(path)
        require(
            isinstance(values, dict) and values.get("kind") == KIND,
            f"Expected the configuration of an audit in {path}, got that of something else.",
        )
        own = {name: value for name, value in values.items() if name not in ("kind", "versions")}
        needed = [
            item.name for item in dataclasses.fields(cls) if item.default is dataclasses.MISSING
        ]
        missing = [name for name in needed if name not in own]
        require(not missing, f"Expected {', '.join(missing)} in {path}, found none.")
        try:
            return cls(**check_values("the audit", own, cls, prefix=""))
        except BadInput as error:
            raise BadInput(f"{str(error).rstrip('.')} in {path}.") from error

    def check_same(self, found: Self, path: Path, *, answered: bool = True) -> None:
        """Check that an audit may be resumed with these settings.

        Args:
            found: the settings of the audit's first part.
            path: their file.
            answered: whether anything was attacked. If not, the public data may be others.

        Raises:
            BadInput: if a setting is another one that the answers depend on.
        """
        ours, theirs = self.to_dict(), found.to_dict()
        free = FREE if answered else (*FREE, "public", "public_code")
        for name in ours:
            if name in free or ours[name] == theirs[name]:
                continue
            what = f"`{name}` is {shown(theirs[name])} there and {shown(ours[name])} here"
            if name in ("code", "public_code"):
                what = f"{'the app' if name == 'code' else 'the public data'} has been changed"
            raise BadInput(
                f"Expected the app and the arguments of {path} to resume its audit, but {what}: "
                "repeat them, or start anew with `--overwrite`."
            )


def is_audit(folder: Path) -> bool:
    """Whether a folder is an audit's.

    Args:
        folder: the folder.

    Raises:
        BadInput: if its config.yaml is damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return False
    values = read_yaml(path)
    return isinstance(values, dict) and values.get("kind") == KIND


def digest_of(folder: Path, output: Path) -> str:
    """SHA-256 of the Python and TOML files in an app's folder, hidden folders left out.

    Args:
        folder: the app's folder.
        output: a folder that is left out, as are virtual environments.
    """
    found = hashlib.sha256()
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name != "__pycache__"
            and (here / name).resolve() != output.resolve()
            and not (here / name / "pyvenv.cfg").is_file()
        )
        for name in sorted(files):
            if name.endswith(SUFFIXES):
                found.update(f"{(here / name).relative_to(folder).as_posix()}\0".encode())
                found.update(hashlib.sha256((here / name).read_bytes()).digest())
    return found.hexdigest()


def _digest_of_samples(tensors: Sequence[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()

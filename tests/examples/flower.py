"""Flower's own processes in tests: SuperLink, SuperNodes, certificates, keys; all in one folder."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[2]
APP = ROOT / "examples" / "flower-app"
LOOPBACK = "127.0.0.1"
CONFIG = "[tool.flwr.app.config]"


def copy_app(folder: Path, settings: Mapping[str, Any]) -> Path:
    """A copy of the app with other settings, and with more of them, in its pyproject.toml."""
    copy = folder / "flower-app"
    shutil.copytree(APP, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "pyproject.toml").read_text(encoding="utf-8")
    head, _, own = text.partition(CONFIG)
    kept = [line for line in own.splitlines() if line.partition(" = ")[0] not in settings]
    # What JSON writes for numbers, texts and truth values is TOML as well.
    new = [f'"{name}" = {json.dumps(value)}' for name, value in settings.items()]
    lines = [f"{head}{CONFIG}", *kept, *new, ""]
    (copy / "pyproject.toml").write_text("\n".join(lines), encoding="utf-8")
    return copy


def free_port() -> int:
    """A port of the loopback interface on which nothing listens."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def wait_until(
    holds: Callable[[], bool], seconds: float, what: str, logs: Callable[[], str]
) -> None:
    """Wait until something holds; fails with the logs if it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{logs()[-6000:]}"
        time.sleep(0.1)


@dataclass
class Flower:
    """Flower's commands with a home of their own; every process that is started is ended.

    Args:
        folder: an empty folder, in which all processes run and write their logs.
        processes: name of the log -> process.
    """

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    children: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """No telemetry, no look for updates, nothing installed, and this copy of fedleak."""
        programs = str(Path(sys.executable).parent)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {
            "FLWR_HOME": str(self.folder / "home"), "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(paths),
        }  # fmt: skip

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in the background; its output is in the log of this name."""
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self.processes[name]

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment | more, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        """What a process has written so far."""
        log = self.log(name)
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def logs(self) -> str:
        """What all processes have written so far."""
        return "\n".join(f"--- {name}\n{self.said(name)[-3000:]}" for name in self.processes)

    def wait(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """See :func:`wait_until`."""
        wait_until(holds, seconds, what, self.logs)

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End a process by its own number, without warning if told so, and what it has started."""
        process = self.processes.pop(name)
        started = []
        with suppress(psutil.Error):
            started = psutil.Process(process.pid).children(recursive=True)
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)
        end_all(started)

    def stop_all(self) -> None:
        """End all processes, the last one first, and a SuperLink that `flwr run` has started."""
        later = list(self.processes.values())[1:]
        for process in later:  # a node without its SuperLink would try again for long
            process.terminate()
        for name in reversed(list(self.processes)):
            self.stop(name)
        end_all(self.strays())

    def strays(self) -> list[psutil.Process]:
        """Processes of this folder's home, which `flwr run` has detached from its own."""
        home, found = self.environment["FLWR_HOME"], []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FLWR_HOME") == home:
                    found.append(process)
        return found


def end_all(processes: Sequence[psutil.Process]) -> None:
    """End processes that are still running, by their numbers."""
    for ask in ("terminate", "kill"):
        for process in processes:
            with suppress(psutil.Error):
                getattr(process, ask)()
        psutil.wait_procs(processes, timeout=10)


def write_certificates(folder: Path) -> None:
    """A certificate authority ``ca.crt`` and a certificate of the loopback, ``server.pem``."""
    folder.mkdir()
    authority, server = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server of a test")])
    addresses = [x509.IPAddress(ip_address(LOOPBACK)), x509.DNSName("localhost")]
    root = (
        certificate(issuer, issuer, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(KEY_USAGE, critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False
        )
        .sign(authority, hashes.SHA256())
    )
    own = (
        certificate(subject, issuer, server.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .sign(authority, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(own.public_bytes(Encoding.PEM))
    key = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").write_bytes(key)


def check_certificates(folder: Path) -> None:
    """Let a client and a server shake hands, checked as strictly as Python 3.13 and later do."""
    asking = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    answering = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    answering.load_cert_chain(folder / "server.pem", folder / "server.key")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(back, there, server_hostname=LOOPBACK)
    server = answering.wrap_bio(there, back, server_side=True)
    done: set[int] = set()
    for _ in range(10):
        for number, side in enumerate((client, server)):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done.add(number)
    assert done == {0, 1}


KEY_USAGE = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
    encipher_only=False, decipher_only=False,
)  # fmt: skip


def certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """A certificate of one day that is not signed yet."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )


def write_key(path: Path) -> None:
    """The private key of a node, and its public key beside it, as OpenSSH writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public)

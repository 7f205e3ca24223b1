"""The Flower app as a deployment on the loopback: TLS, nodes with keys, one of them restarted."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from PIL import Image

from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from tests.examples.flower import (
    LOOPBACK,
    Flower,
    check_certificates,
    copy_app,
    free_port,
    write_certificates,
    write_key,
)

CLASSES, SIDE, MEAN, STD = 4, 8, 0.5, 0.25
LINK = "test"
START, RUN = 60, 240  # seconds, of a machine that is busy with something else
# Twice the time between two signs of life of a node, after which it counts as gone.
ABSENT = HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL + 1


def write_data(path: Path, seed: int, count: int) -> np.ndarray:
    """Images of a party of the federation, those for training different from everybody else's."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)
    test = draw.integers(0, 256, (CLASSES, 1, SIDE, SIDE), dtype=np.uint8)
    np.savez(
        path, train_images=images, train_labels=(seed + np.arange(count)) % CLASSES,
        test_images=test, test_labels=np.arange(CLASSES),
    )  # fmt: skip
    return images


def listens(host: str, port: int) -> bool:
    """Whether somebody listens at an address."""
    with socket.socket() as asking:
        return asking.connect_ex((host, port)) == 0


class Deployment(Flower):
    """A SuperLink with TLS that knows the keys of two nodes, each with an image of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.started: list[str] = []
        self.certificates = folder / "certificates"
        self.address = f"{LOOPBACK}:{free_port()}"
        write_certificates(self.certificates)
        (folder / "home").mkdir()
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "{LINK}"\n\n[superlink.{LINK}]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.certificates / "ca.crt"}"\n',
            encoding="utf-8",
        )
        write_data(folder / "public.npz", seed=9, count=8)
        self.secrets = [write_data(folder / f"own-{n}.npz", seed=n, count=1) for n in (0, 1)]
        for name in ("node-0", "node-1", "stranger"):
            write_key(folder / f"{name}.key")

    @property
    def settings(self) -> dict[str, Any]:
        """The app's settings; the server has public images and no private one."""
        return {
            "data": "npz", "data.path": str(self.folder / "public.npz"),
            "data.mean": f"[{MEAN}]", "data.std": f"[{STD}]", "model": "smlp", "model.width": 32,
            "attack": "rgap", "clients": 2, "rounds": 1, "client-timeout": 60.0,
        }  # fmt: skip

    def start_link(self) -> None:
        """Start the SuperLink, which keeps every message in a file, and register the nodes."""
        host, _, port = self.address.partition(":")
        made = self.certificates
        self.start(
            "superlink", "flower-superlink", "--host", host, "--port", port,
            "--ssl-ca-certfile", str(made / "ca.crt"), "--ssl-certfile", str(made / "server.pem"),
            "--ssl-keyfile", str(made / "server.key"), "--enable-supernode-auth",
            "--database", str(self.folder / "state.db"),
        )  # fmt: skip
        self.wait(lambda: listens(host, int(port)), START, "the SuperLink listens")
        for number in (0, 1):
            public = str(self.folder / f"node-{number}.pub")
            found = self.run("flwr", "supernode", "register", public, LINK)
            assert found.returncode == 0, found.stdout + found.stderr + self.logs()

    def node(self, name: str, *more: str, secure: bool = True) -> None:
        """Start a SuperNode."""
        root = ["--root-certificates", str(self.certificates / "ca.crt")] if secure else []
        self.start(
            name, "flower-supernode", "--superlink", self.address, *root,
            "--host", LOOPBACK, "--port", str(free_port()), "--max-retries", "1", *more,
        )  # fmt: skip

    def member(self, number: int) -> Callable[[], bool]:
        """Start one of the two nodes; returns what tells whether it is connected."""
        name = f"node-{number}"
        config = f"partition-id={number} num-partitions=2 "
        config += f"data-path='{self.folder / f'own-{number}.npz'}'"
        key = ["--auth-supernode-private-key", str(self.folder / f"{name}.key")]
        before = self.said(name).count("SuperNode ID")
        self.node(name, *key, "--node-config", config)
        return lambda: self.said(name).count("SuperNode ID") > before

    def run_app(self, output: Path, **changes: Any) -> None:
        """Run the app, without waiting for its end."""
        app = copy_app(output.parent, self.settings | {"output": str(output)} | changes)
        found = self.run("flwr", "run", str(app), LINK)
        number = re.search(r"started run (\d+)", found.stdout)
        assert number, found.stdout + found.stderr
        self.started.append(number[1])

    def wait_for(self, output: Path) -> dict[str, Any]:
        """Wait for the end of the last run; returns its summary."""
        self.wait(lambda: self.ended_runs() == len(self.started), RUN, "the run ends")
        if not (output / "report.html").is_file():
            said = self.run("flwr", "log", self.started[-1], LINK, "--show")
            pytest.fail(f"the run has failed: {said.stdout[-6000:]}{said.stderr[-2000:]}")
        summary: dict[str, Any] = json.loads((output / "summary.json").read_text("utf-8"))
        return summary

    def ended_runs(self) -> int:
        """Number of runs whose ServerApp has ended."""
        return self.said("superlink").count("Finished task")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        made.start_link()
        for connected in [made.member(0), made.member(1)]:
            made.wait(connected, START, "the nodes connect")
        yield made
    finally:
        made.stop_all()


def test_the_server_attacks_what_it_receives_and_never_has_the_truth(
    deployment: Deployment, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    deployment.run_app(output)
    summary = deployment.wait_for(output)
    assert (summary["status"], summary["federation"]["failures"]) == ("complete", 0)
    folder = RunFolder(output)
    # What updates give away is a matter of the attack: here each client's only image,
    rows = read_rows(folder.results)
    assert [(row["client"], row["ssim"], row["success"]) for row in rows] == [
        (0, None, None), (1, None, None),
    ]  # fmt: skip
    for row, (secret,) in zip(rows, deployment.secrets, strict=True):
        assert row["explained"] > 0.99
        found = np.asarray(Image.open(folder.reconstruction(row)))
        assert np.abs(found.astype(int) - secret[0]).max() <= 1
    assert "Reconstructions without a score: 2 by rgap" in (output / "report.html").read_text()
    # but no more than the update has left the client: the SuperLink keeps messages in a file.
    assert not folder.truth().exists()
    received = [*folder.updates().iterdir(), *deployment.folder.glob("state.db*")]
    assert len(received) >= 4  # two updates, the weights that were sent, the messages
    for path in [*received, *deployment.folder.glob("superlink.log*")]:
        assert not holds_truth(path.read_bytes(), deployment.secrets), path


def holds_truth(content: bytes, secrets: list[np.ndarray]) -> bool:
    """Whether a row of pixels of a client's image is in it, as it is stored or normalised."""
    for row in np.concatenate(secrets).reshape(-1, SIDE):
        scaled = (row.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        if row.tobytes() in content or scaled.tobytes() in content:
            return True
    return False


def test_the_certificates_of_the_test_are_strictly_valid(tmp_path: Path) -> None:
    write_certificates(tmp_path / "made")
    check_certificates(tmp_path / "made")


def test_the_truth_would_be_found(deployment: Deployment) -> None:
    image = deployment.secrets[1].astype(np.float32)
    assert holds_truth(b"x" + deployment.secrets[0].tobytes(), deployment.secrets)
    normalised = (image / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    assert holds_truth(normalised.tobytes() + b"x", deployment.secrets)


@pytest.mark.slow
def test_strangers_are_refused(deployment: Deployment) -> None:
    key = ["--auth-supernode-private-key", str(deployment.folder / "stranger.key")]
    strangers = {
        "no-registered-key": (True, key), "no-key": (True, []), "no-authority": (False, key),
        "no-tls": (False, ["--insecure"]),
    }  # fmt: skip
    for name, (secure, more) in strangers.items():
        deployment.node(name, *more, secure=secure)
    for name in strangers:
        assert deployment.processes[name].wait(START) == 1, deployment.said(name)
        deployment.processes.pop(name)
        assert "Failed to initialize the connection" in deployment.said(name)
        assert "SuperNode ID" not in deployment.said(name)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_node_that_ends_in_a_round_comes_back(
    kill: bool, deployment: Deployment, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    trained = deployment.said("node-1").count("Receiving: train")
    deployment.run_app(output, rounds=2, **{"client-timeout": 300.0})
    deployment.wait(
        lambda: deployment.said("node-1").count("Receiving: train") > trained,
        RUN, "node 1 is asked to train",
    )  # fmt: skip
    deployment.stop("node-1", kill=kill)
    connected = deployment.member(1)
    if kill:  # Flower takes it for present, and the one that comes back for another, for a minute
        assert deployment.processes.pop("node-1").wait(START) == 1
        time.sleep(ABSENT)
        connected = deployment.member(1)
    deployment.wait(connected, START, "node 1 connects again")
    summary = deployment.wait_for(output)
    federation = summary["federation"]
    assert (summary["status"], federation["failures"], federation["lost_rounds"]) == (
        "complete", 1, [1],
    )  # fmt: skip
    rows = read_rows(RunFolder(output).results)
    assert [(row["round"], row["client"]) for row in rows] == [(1, 0), (2, 0), (2, 1)]

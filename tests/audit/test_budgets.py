"""Declared and effective epsilons of apps that are not changed, against figures known apart."""

import csv
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from opacus.accountants import RDPAccountant

from fedleak.audit.app import read_app
from fedleak.audit.budgets import spent_by_app
from fedleak.audit.folder import REPLIES, AuditFolder
from fedleak.audit.run import Audit, audit
from fedleak.audit.simulation import Observed, run_app
from fedleak.audit.summary import AuditSummary
from fedleak.reporting.audit_report import write_audit_report
from tests.audit.apps import (
    CLIENT,
    ONE_STEP,
    SERVER,
    imports_undone,
    in_process,
    write_app,
)
from tests.federation.test_run_spending import epsilon_of

OPACUS = """
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 6), nn.Sigmoid(), nn.Linear(6, 3))

def data(number):
    torch.manual_seed(100 + number)
    return TensorDataset(torch.rand(20, 12), torch.randint(3, (20,)))

def train(model, examples, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=DataLoader(examples, batch_size=4),
        noise_multiplier=1.1, max_grad_norm=0.7, poisson_sampling={poisson},
    )
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(private(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()
"""
LOCAL = (
    "from flwr.clientapp.mod import LocalDpMod",
    "@app.train(mods=[LocalDpMod(clipping_norm=1.0, sensitivity=1e-4, epsilon=10, delta=1e-5)])",
)


def made(
    folder: Path, name: str, task: str, *, mod: tuple[str, str] | None = None, around: str = ""
) -> Path:
    """An app of two rounds; ``around`` makes the strategy of ``strategy``."""
    client = CLIENT.format(name=name, sends="v")
    server = SERVER.format(name=name)
    if mod is not None:
        client = client.replace("app = ClientApp()", f"{mod[0]}\n\napp = ClientApp()")
        client = client.replace("@app.train()", mod[1])
    if around:
        server = server.replace("found = strategy", f"strategy = {around}\n    found = strategy")
        server = f"import flwr.serverapp.strategy as strategies\n{server}"
    return write_app(
        folder, name, config="lr = 0.1", server_app=server, client_app=client, task=task
    )


def observed(app: Path, out: Path, clients: int = 3) -> tuple[dict[str, Any] | None, Observed]:
    with imports_undone():
        seen = run_app(read_app(app), out, clients=clients, engine=in_process)
        assert not seen.failures
        return spent_by_app(seen, out / REPLIES)[0], seen


def audited(app: Path, out: Path) -> Audit:
    run = functools.partial(run_app, engine=in_process)
    with imports_undone():
        return audit(read_app(app), out, clients=3, rounds=1, budget=40.0, run=run)


def test_a_mod_whose_epsilon_does_not_hold_is_seen(tmp_path: Path) -> None:
    """Each of two rounds declares 10; their noise is worth twice that of one."""
    app = made(tmp_path / "app", "app_local", ONE_STEP, mod=LOCAL)
    facts, seen = observed(app, tmp_path / "out", clients=2)
    assert facts is not None
    (used,) = seen.facts("r0001-c0000").mechanisms
    assert used.values == {"clipping_norm": 1, "sensitivity": 1e-4, "epsilon": 10, "delta": 1e-5}
    (spent,) = facts["spent"]
    assert (spent["declared_epsilon"], spent["delta"], spent["rounds"]) == (20, 1e-5, 2)
    assert spent["epsilon"] == pytest.approx(2 * 8.523e8, rel=1e-3)
    assert "declared epsilon 10 does not hold" in " ".join(facts["findings"])


@pytest.mark.slow
def test_a_mod_whose_epsilon_does_not_hold_is_read_through(tmp_path: Path) -> None:
    """Clipped to 1 and noised for a sensitivity of 1e-4: 10 declared, 8.5e8 effective."""
    app = made(tmp_path / "app", "app_localdp", ONE_STEP, mod=LOCAL)
    found = audited(app, tmp_path / "out")
    (row,) = found.verdict.privacy
    assert (row["declared_epsilon"], row["delta"], row["rounds"]) == (10, 1e-5, 1)
    assert row["epsilon"] == pytest.approx(8.5e8, rel=0.01)
    first, *read = found.verdict.privacy_sentences
    assert first.startswith(
        "local_dp_mod: declared epsilon 10, effective epsilon 8.523e+08 at delta 1e-05"
    )
    assert any(text.startswith("Read through it: inputs;") for text in read)
    files = AuditFolder(tmp_path / "out")
    stored = json.loads(files.summary.read_text())
    assert stored["verdict"]["privacy"] == [row]
    assert "does not hold" in " ".join(stored["privacy"]["findings"])
    assert AuditSummary.load(files.summary).verdict == found.verdict
    with files.privacy.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], row["client"]) for row in rows] == [("1", str(n)) for n in range(3)]
    page = write_audit_report(files.path).read_text()
    assert "declared epsilon 10, effective epsilon 8.523e+08" in page
    assert '<td class="number">10</td><td class="number">8.523e+08</td>' in page


@pytest.mark.parametrize("poisson", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_opacus_is_counted_as_its_own_accountant_counts(tmp_path: Path, poisson: bool) -> None:
    task = OPACUS.format(poisson=poisson)
    name = f"app_opacus_{str(poisson).lower()}"
    facts, seen = observed(made(tmp_path / "app", name, task), tmp_path / "out", clients=1)
    assert facts is not None
    (used,) = seen.facts("r0001-c0000").mechanisms
    assert used.values["noise_multiplier"] == 1.1
    assert used.values["max_norm"] == pytest.approx(0.7)
    assert used.values["sampling_rate"] == pytest.approx(0.2)
    assert (used.values["poisson"], used.steps) == (poisson, 5)
    (spent,) = facts["spent"]
    assert (spent["unit"], spent["adjacency"], spent["rounds"]) == ("sample", "remove", 2)
    own = RDPAccountant()
    own.history = [(1.1, 0.2, 10)]
    if poisson:  # RDP is an upper bound, some percent above the distribution of losses
        assert 0.7 < spent["epsilon"] / own.get_epsilon(1e-5) < 1.0
    else:  # a shuffled loader's drawing is not counted
        assert spent["epsilon"] == pytest.approx(epsilon_of(1.1 / 10**0.5), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "settings", "mod", "epsilon"),
    [
        ("ServerSideFixed", "noise_multiplier=2.0, clipping_norm=0.5", "", epsilon_of(2 / 2**0.5)),
        (
            "ClientSideFixed", "noise_multiplier=2.0, clipping_norm=0.5", "fixedclipping_mod",
            epsilon_of(2 / 2**0.5),
        ),
        ("ClientSideFixed", "noise_multiplier=2.0, clipping_norm=0.5", "", None),
        (
            "ClientSideAdaptive", "noise_multiplier=0.1", "adaptiveclipping_mod",
            epsilon_of((0.1**-2 + (1 - 0.25) * 0.15**-2) ** -0.5 / 2**0.5),
        ),
    ],
)  # fmt: skip
def test_central_strategies_are_seen_with_the_mods_that_they_need(
    tmp_path: Path, name: str, settings: str, mod: str, epsilon: float | None
) -> None:
    package = f"app_central{len(mod)}{len(name)}"
    around = (
        f"strategies.DifferentialPrivacy{name}Clipping(strategy, num_sampled_clients=3, {settings})"
    )
    mods = (f"from flwr.clientapp.mod import {mod}", f"@app.train(mods=[{mod}])") if mod else None
    app = made(tmp_path / "app", package, ONE_STEP, mod=mods, around=around)
    facts, seen = observed(app, tmp_path / "out")
    assert len(seen.mechanisms) == 1
    assert facts is not None
    (spent,) = facts["spent"]
    assert (spent["trust"], spent["rounds"]) == ("central", 2)
    if epsilon is None:
        assert spent["epsilon"] is None
        assert "no client was seen to use Flower's fixedclipping_mod" in spent["reason"]
    else:
        assert spent["epsilon"] == pytest.approx(epsilon, rel=1e-3)


def test_an_app_without_a_mechanism_has_no_budget(tmp_path: Path) -> None:
    facts, _ = observed(made(tmp_path / "app", "app_plain", ONE_STEP), tmp_path / "out")
    assert facts is None

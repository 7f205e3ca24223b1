"""What runs count of their privacy, against the Gaussian mechanism computed here, and budgets."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedleak import experiment
from fedleak.build import client_samples, make_data, make_model
from fedleak.config import Privacy, RunConfig
from fedleak.errors import BadInput
from fedleak.federation.engine.server import make_strategy
from fedleak.federation.run_spending import make_spending
from fedleak.registry import Plugin
from fedleak.reporting import TensorBoard, write_report
from fedleak.reporting.charts import read_scalars
from fedleak.runs.folder import RunFolder
from fedleak.runs.summary import federation_notes, privacy_notes
from tests.federation.runs import Recorder, attack_plugin, in_process, tiny_config, tiny_data

DELTA = 1e-5
FIXED = "DifferentialPrivacyServerSideFixedClipping"
ADAPTIVE = "DifferentialPrivacyClientSideAdaptiveClipping"


def epsilon_of(multiplier: float, delta: float = DELTA) -> float:
    """Balle and Wang 2018, theorem 8, solved for epsilon; noise over sensitivity."""

    def excess(epsilon: float) -> float:
        first = norm.cdf(0.5 / multiplier - epsilon * multiplier)
        second = norm.logcdf(-0.5 / multiplier - epsilon * multiplier)
        return float(first - math.exp(epsilon + second) - delta)

    return float(brentq(excess, 0, 10 / multiplier**2 + 100 / multiplier))


def defended(*, max_norm: float = 0.5, sigma: float = 1.0) -> tuple[Plugin, ...]:
    return (
        Plugin("fedleak.defenses.clipping.Clipping", {"max_norm": max_norm}),
        Plugin("fedleak.defenses.noise.NoisyGradients", {"sigma": sigma}),
    )


def budget(epsilon: float) -> Privacy:
    return RunConfig.from_dict(
        {"data": "photos", "model": "smlp", "privacy": {"budget": {"epsilon": epsilon}}}
    ).privacy


def ran(config: RunConfig, *observers: Any, **flags: Any) -> dict[str, Any]:
    with in_process():
        return experiment.run(config, observers, **flags)


def table(config: RunConfig) -> list[dict[str, str]]:
    with RunFolder(Path(config.output)).privacy.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data"))


def test_a_run_counts_each_client_and_round(data: Path, tmp_path: Path) -> None:
    """Noise of 1 behind a clipping to 0.5: replacing an update moves it by up to 1."""
    config = tiny_config(
        data, tmp_path / "run", rounds=3, clients_per_round=2, defenses=defended(),
        attacks=(attack_plugin("iga"),), victim_clients=[0],
    )  # fmt: skip
    loaded = make_data(config)
    summary = ran(config, TensorBoard(config, loaded.mean, loaded.std))
    rows = table(config)
    assert [int(row["round"]) for row in rows] == [1, 1, 2, 2, 3, 3]
    times: dict[str, int] = {}
    for row in rows:
        times[row["client"]] = times.get(row["client"], 0) + 1
        assert float(row["epsilon"]) == pytest.approx(epsilon_of(1.0), abs=1e-3)
        so_far = epsilon_of(1 / math.sqrt(times[row["client"]]))
        assert float(row["epsilon_so_far"]) == pytest.approx(so_far, abs=1e-3)
        assert (row["unit"], row["adjacency"], row["trust"]) == ("client", "replace", "local")
        assert row["declared_epsilon"] == ""
    most = max(times.values())
    assert most > 1
    (facts,) = summary["privacy"]
    assert facts["spent"][0]["epsilon"] == pytest.approx(epsilon_of(most**-0.5), abs=1e-3)
    assert facts["spent"][0]["rounds"] == most
    (sentence,) = privacy_notes(summary["privacy"])
    assert sentence.startswith("Privacy of a client on smlp (noise; replace, local): epsilon ")
    curves = read_scalars(RunFolder(Path(config.output)).tensorboard)["smlp"]
    points = curves["3 training/privacy/epsilon so far of a client, local"]
    assert [step for step, _ in points] == [1, 2, 3]
    assert points[-1][1] == pytest.approx(float(rows[-1]["epsilon_so_far"]), rel=1e-6)
    page = write_report(RunFolder(Path(config.output))).read_text()
    assert f"{facts['spent'][0]['epsilon']:.4g}" in page
    # Attacks on its updates know what was spent.
    again = experiment.attack_run(
        Path(config.output),
        tiny_config(
            data, tmp_path / "again", rounds=3, clients_per_round=2, defenses=defended(),
            attacks=(attack_plugin("iga", iterations=5),), victim_clients=[0],
        ),
    )  # fmt: skip
    assert again["privacy"] == summary["privacy"]


def test_without_a_clipping_no_epsilon_holds(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", defenses=defended()[1:])
    summary = ran(config)
    (facts,) = summary["privacy"]
    assert facts["spent"][0]["epsilon"] is None
    assert "nothing bounds" in privacy_notes(summary["privacy"])[0]
    assert {row["epsilon"] for row in table(config)} == {"inf"}
    assert "∞" in write_report(RunFolder(Path(config.output))).read_text()


def test_a_run_without_a_mechanism_counts_nothing(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run")
    assert "privacy" not in ran(config)
    assert not RunFolder(Path(config.output)).privacy.exists()


def test_the_run_ends_before_the_round_that_exceeds_its_budget(data: Path, tmp_path: Path) -> None:
    """Two rounds fit into the budget, three do not; the run is complete and says why it ended."""
    between = (epsilon_of(2**-0.5) + epsilon_of(3**-0.5)) / 2
    events = Recorder()
    config = tiny_config(
        data, tmp_path / "run", rounds=9, evaluate_every=5, defenses=defended(),
        privacy=budget(between),
    )  # fmt: skip
    summary = ran(config, events)
    assert summary["status"] == "complete"
    assert max(int(row["round"]) for row in table(config)) == 2
    assert max(float(row["epsilon_so_far"]) for row in table(config)) <= between
    assert len(events.arguments("privacy_spent")) == 2
    ended = federation_notes(summary["federation"])[0]
    assert "After round 2 of 9: round 3 would bring client 0 to an epsilon of" in ended
    assert "`privacy.budget`" in ended
    assert summary["federation"]["accuracy"] is not None  # that of the last round's model
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert ended[30:80] in write_report(RunFolder(Path(config.output))).read_text()
    assert RunConfig.load(tmp_path / "run" / "config.yaml").privacy == config.privacy
    # Nothing is left to do.
    assert ran(config, resume=True) == summary


def test_an_interrupted_run_goes_on_counting(data: Path, tmp_path: Path) -> None:
    whole = tiny_config(data, tmp_path / "whole", rounds=3, defenses=defended())
    parts = tiny_config(data, tmp_path / "parts", rounds=3, defenses=defended())
    expected = ran(whole)["privacy"]

    def interrupt(model: str, round_: int, metrics: Any) -> None:
        if round_ == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(parts, Recorder("round_evaluated", interrupt))
    assert ran(parts, resume=True)["privacy"] == expected
    assert table(parts) == table(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "a mechanism of differential privacy where `privacy.budget` is given, such as"),
        ({"defenses": defended()[1:]}, "finite epsilon of noise .*, but nothing bounds"),
        ({"defenses": defended()[:1]}, "finite epsilon of clipping .*, but no noise is added"),
        ({"defenses": defended()}, "`privacy.budget.epsilon` of at least 4.38, .* got 0.1"),
    ],
)
def test_a_budget_that_cannot_hold_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = tiny_config(data, tmp_path / "run", privacy=budget(0.1), **changes)
    with pytest.raises(BadInput, match=message):
        ran(config)
    assert not (tmp_path / "run").exists()


def test_central_noise_is_counted_by_the_weights_of_the_mean(data: Path, tmp_path: Path) -> None:
    """Clients weigh by their numbers of samples, the largest of which sets the sensitivity."""
    config = tiny_config(
        data, tmp_path / "run", rounds=1, protocol="fedavg", partition="dirichlet", alpha=1.0,
        strategy=FIXED, strategy_options={"noise_multiplier": 2.0, "clipping_norm": 0.3},
    )  # fmt: skip
    sizes = [len(part) for part in client_samples(config, make_data(config))]
    assert len(set(sizes)) > 1
    ran(config)
    rows = table(config)
    expected = epsilon_of(2.0 / 4 / (max(sizes) / sum(sizes)))
    assert len(rows) == 4
    for row in rows:
        assert (row["mechanism"], row["trust"]) == ("fixed_clipping", "central")
        assert float(row["epsilon"]) == pytest.approx(expected, abs=1e-3)


def test_clients_clip_for_a_strategy_that_leaves_it_to_them(data: Path, tmp_path: Path) -> None:
    """Adaptive clipping; the noised number of clients that clipped counts with the noise."""
    noise, count = 0.15, 4 / 20
    mods = [{"class_path": "fedleak.federation.clipping_mods.AdaptiveClipping", "init_args": {}}]
    config = tiny_config(
        data, tmp_path / "run", rounds=2, protocol="fedavg", mods=mods, strategy=ADAPTIVE,
        strategy_options={"noise_multiplier": noise},
    )  # fmt: skip
    summary = ran(config)
    assert summary["federation"]["failures"] == 0
    one = (noise**-2 - (2 * count) ** -2 + count**-2) ** -0.5
    (spent,) = summary["privacy"][0]["spent"]
    assert spent["epsilon"] == pytest.approx(epsilon_of(one / math.sqrt(2)), rel=1e-3)
    bare = facts_of(dataclasses.replace(config, federation=dataclasses.replace(
        config.federation, mods=[]
    )))  # fmt: skip
    assert "lack Flower's adaptiveclipping_mod" in bare["spent"][0]["reason"]


def test_what_a_local_mod_declares_stands_beside_what_it_is_worth(
    data: Path, tmp_path: Path
) -> None:
    """Another mechanism before its noise changes nothing; central noise is counted apart."""
    settings = {"clipping_norm": 1.0, "sensitivity": 1e-4, "epsilon": 10.0, "delta": 1e-5}
    config = tiny_config(
        data, tmp_path / "run", protocol="fedavg", strategy=FIXED, defenses=defended()[1:],
        mods=[{"class_path": "flwr.clientapp.mod.LocalDpMod", "init_args": settings}],
        strategy_options={"noise_multiplier": 2.0, "clipping_norm": 0.3},
    )  # fmt: skip
    facts = facts_of(config)
    local, central = sorted(facts["spent"], key=lambda spent: spent["trust"], reverse=True)
    assert (local["mechanisms"], local["declared_epsilon"]) == (["local_dp_mod"], 10)
    assert local["epsilon"] == pytest.approx(8.523e8, rel=1e-3)
    assert central["epsilon"] == pytest.approx(epsilon_of(2.0), abs=1e-3)
    assert any("declared epsilon 10 does not hold" in text for text in facts["findings"])


def facts_of(config: RunConfig) -> dict[str, Any]:
    """What would be spent in a round, without the run."""
    data = make_data(config)
    spending = make_spending(config, data, make_model(config, data), make_strategy(config))
    assert spending is not None
    spending.record(1, [0], None)
    return spending.facts()

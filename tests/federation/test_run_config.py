"""The configuration of a run from the run config of a Flower app."""

from pathlib import Path
from typing import Any

import pytest

from fedleak.config import Federation, RunConfig, Victims
from fedleak.errors import BadInput
from fedleak.federation.run_config import on_node, read_flag, read_run_config
from fedleak.registry import Plugin

NEEDED = {"data": "photos", "model": "lenet"}


def read(**more: Any) -> RunConfig:
    return read_run_config(NEEDED | {key.replace("__", "."): value for key, value in more.items()})


def test_short_names_and_hyphens() -> None:
    found = read_run_config({
        **NEEDED, "output": "/runs/a", "seed": 7, "attack": "iga", "attack.iterations": 50,
        "defense": "pruning", "defense.ratio": 0.5, "model.precode.bottleneck_size": 8,
        "clients": 3, "rounds": 2, "protocol": "fedavg", "batch-size": 4, "local-epochs": 2,
        "client-timeout": 9, "labels": "recovered", "metrics.space": "normalised",
        "victims.rounds": "[2]", "resume": True, "overwrite": False,
    })  # fmt: skip
    assert found == RunConfig(
        data=Plugin("fedleak.data.photos.Photos"),
        model=Plugin("fedleak.models.lenet.LeNet", {"precode": {"bottleneck_size": 8}}),
        attacks=(Plugin("fedleak.attacks.iga.IGA", {"iterations": 50}),),
        defenses=(Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.5}),),
        output="/runs/a",
        seed=7,
        federation=Federation(
            clients=3, rounds=2, protocol="fedavg", batch_size=4, local_epochs=2, client_timeout=9.0
        ),
        victims=Victims(labels="recovered", rounds=[2]),
        metrics=found.metrics,
    )
    assert found.metrics.space == "normalised"


def test_no_attack_and_several_attacks() -> None:
    assert read(attack="", defense="").attacks == ()
    found = read(attack="[rgap, {class_path: iga, init_args: {iterations: 5}}]")
    assert [plugin.class_path.rpartition(".")[2] for plugin in found.attacks] == ["RGAP", "IGA"]
    assert found.attacks[1].init_args == {"iterations": 5}
    assert read(federation__strategy_options="{min_available_nodes: 1}").federation == Federation(
        strategy_options={"min_available_nodes": 1}
    )


def test_the_output_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert read(output="runs/a").output == str(tmp_path / "runs" / "a")
    assert read(output="~/a").output == "/home/somebody/a"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("round", 2, "Unknown key of the run config `round`.*Did you mean `rounds`"),
        ("ray-address", "a:1", "Unknown key of the run config `ray-address`"),
        ("federation.ray_address", "a:1", "Unknown key of the run config `federation.ray_address`"),
        ("baseline", True, "Unknown key of the run config `baseline`"),
        ("output.x", 1, "Unknown key of the run config `output.x`"),
        ("federation.round", 2, "Unknown setting of federation `round`"),
        ("rounds", "two", "Expected `federation.rounds` to be a whole number, got `two`"),
        ("rounds", 0, "Expected `federation.rounds` to be at least 1, got 0"),
        ("attack", "igu", "Unknown attack `igu`.*Did you mean `iga`"),
        ("attack", "[rgap", "Expected YAML in `attack` of the run config"),
        ("attack.iterations", 5, "Expected the name of a plugin as `attack`.*`attack.iterations`"),
        ("model.widht", 5, "Unknown setting of lenet `widht`"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(key: str, value: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        read_run_config(NEEDED | {key: value})
    assert "\n" not in str(caught.value)


def test_data_and_model_have_to_be_named() -> None:
    with pytest.raises(BadInput, match="Expected `data` to be given"):
        read_run_config({"model": "lenet"})


def test_flags() -> None:
    assert read_flag({"resume": True}, "resume") is True
    assert read_flag({}, "resume") is False
    with pytest.raises(BadInput, match="Expected `resume` in the run config to be true or false"):
        read_flag({"resume": "yes"}, "resume")


def test_a_node_has_its_own_data() -> None:
    config = read_run_config({"data": "npz", "data.path": "a.npz", "model": "lenet", "clients": 2})
    node = {"partition-id": 0, "num-partitions": 2, "data-path": "/mine.npz"}
    assert on_node(config, node).data.init_args == {"path": "/mine.npz"}
    assert on_node(config, {"partition-id": 0}) is config
    with pytest.raises(BadInput, match=r"Expected `num-partitions` of a node to be 2.*got `10`"):
        on_node(config, {"num-partitions": 10})


def test_a_malicious_server_is_named_as_the_other_plugins_are() -> None:
    told = {"data": "photos", "model": "smlp", "server": "hyperparameters", "server.batch": 2}
    config = read_run_config(told | {"aggregated": True, "public": 7, "obeys": "{bs: batch_size}"})
    assert config.server == Plugin("fedleak.servers.hyperparameters.Hyperparameters", {"batch": 2})
    assert (config.victims.aggregated, config.public) == (True, 7)
    assert config.federation.obeys == {"bs": "batch_size"}
    none = {"data": "photos", "model": "smlp", "server": ""}
    assert read_run_config(none).server is None

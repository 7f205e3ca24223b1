import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from fedleak.config import Federation, Metrics, RunConfig, Victims, versions
from fedleak.errors import BadInput
from fedleak.registry import Plugin

PHOTOS = Plugin("fedleak.data.photos.Photos")
GUARDED = Plugin("fedleak.models.mlp.SMLP", {"width": 8, "precode": {"bottleneck_size": 4}})
PLAIN = Plugin("fedleak.models.mlp.SMLP", {"width": 8})


def full() -> RunConfig:
    """Nothing in it is a default."""
    return RunConfig(
        data=Plugin("fedleak.data.npz.Npz", {"path": "sets/faces.npz", "mean": [0.5]}),
        model=GUARDED,
        attacks=(Plugin("fedleak.attacks.iga.IGA", {"iterations": 3}), Plugin("my.own.Attack")),
        defenses=(Plugin("fedleak.defenses.pruning.Pruning", {"ratio": 0.5}),),
        output="runs/full",
        seed=7,
        baseline=True,
        device="meta",
        federation=Federation(
            clients=5, rounds=3, protocol="fedavg", batch_size=4, local_epochs=2, mode="eval",
            partition="dirichlet", alpha=0.1, shards_per_client=3, strategy="FedAdam",
            strategy_options={"eta": 0.2},
            mods=[{"class_path": "flwr.clientapp.mod.LocalDpMod", "init_args": {"delta": 0.5}}],
            client_evaluation=True, evaluate_every=7, client_timeout=9.5,
            cpus_per_client=0.5, gpus_per_client=0.25, ray_address="auto",
        ),
        victims=Victims(clients=[0, 4], rounds=[1, 3], labels="recovered", when="during"),
        metrics=Metrics(space="normalised", success_threshold=0.5, lpips=True),
    )  # fmt: skip


@pytest.mark.parametrize("config", [RunConfig(PHOTOS, PLAIN), full()], ids=["bare", "full"])
def test_comes_back(config: RunConfig, tmp_path: Path) -> None:
    assert RunConfig.from_dict(config.to_dict()) == config
    config.save(tmp_path / "config.yaml")
    loaded = RunConfig.load(tmp_path / "config.yaml")
    assert loaded == config
    assert loaded.hash == config.hash


@pytest.mark.parametrize(
    ("labels", "method", "text"),
    [
        ("known", "bias_counts", "known"),
        ("recovered", "bias_counts", "recovered"),
        ("bias_counts", "bias_counts", "recovered by bias_counts"),
        ("idlg", "idlg", "recovered by idlg"),
        ("row_minima", "row_minima", "recovered by row_minima"),
    ],
)
def test_where_labels_come_from(labels: Any, method: str, text: str) -> None:
    victims = Victims(labels=labels)
    assert (victims.label_recovery, victims.labels_text) == (method, text)


def test_a_method_that_is_not_there() -> None:
    sentence = r"Unknown value of `victims.labels` `row_min`: .* Did you mean `row_minima`\?$"
    with pytest.raises(BadInput, match=sentence):
        Victims(labels="row_min")  # type: ignore[arg-type]


def test_settings_at_their_defaults_change_no_hash() -> None:
    """A run can be resumed by a version that has more settings."""
    plain = RunConfig(PHOTOS, PLAIN)
    spelt_out = RunConfig.from_dict(
        {
            "data": "photos",
            "model": {"class_path": "smlp", "init_args": PLAIN.init_args | {"precode": None}},
            "federation": {"clients": 8, "mods": [], "alpha": 0.5},
            "metrics": {"lpips": False},
            "baseline": False,
        }
    )
    assert spelt_out.hash == plain.hash
    assert dataclasses.replace(plain, metrics=Metrics(lpips=True)).hash != plain.hash
    assert dataclasses.replace(plain, metrics=Metrics(success_threshold=1)).hash != plain.hash


def test_weights_are_kept() -> None:
    config = RunConfig(PHOTOS, PLAIN, weights="some.safetensors")
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.hash != RunConfig(PHOTOS, PLAIN).hash


def test_a_new_setting_of_attacks_changes_no_old_hash() -> None:
    iga = "fedleak.attacks.iga.IGA"
    old, new, other = (
        RunConfig(PHOTOS, PLAIN, attacks=(Plugin(iga, {"iterations": 5} | settings),)).hash
        for settings in ({}, {"noise_slots": None}, {"noise_slots": ["*"]})
    )
    assert old == new != other


def test_plain_values_alone() -> None:
    """What goes to YAML reads back the same everywhere."""
    assert json.loads(json.dumps(full().to_dict())) == full().to_dict()
    tupled = RunConfig.from_dict(
        full().to_dict()
        | {"baseline": False, "model": {"class_path": "a.B", "init_args": {"x": (1, (2,))}}}
    )
    assert tupled.model.init_args == {"x": [1, [2]]}


def test_saved_with_the_versions(tmp_path: Path) -> None:
    full().save(tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert saved.pop("versions") == versions()
    assert {"fedleak", "torch", "flwr"} <= set(versions())
    assert saved == full().to_dict()
    assert list(saved)[:2] == ["output", "seed"]


def test_to_dict_leaves_nothing_out() -> None:
    names = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(full().to_dict()) == names - {"weights", "server", "public"}  # none given
    trained = dataclasses.replace(full(), baseline=False, weights="some.safetensors")
    assert set(trained.to_dict()) == names - {"server", "public"}


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("sede",), r"Unknown setting `sede`: .*federation.* Did you mean `seed`\?"),
        (("federation", "client"), r"setting of federation `client`: .*Did you mean `clients`\?"),
        (("victims", "label"), r"Unknown setting of victims `label`: .*mean `labels`\?"),
        (("metrics", "spaces"), r"Unknown setting of metrics `spaces`: .*mean `space`\?"),
    ],
)
def test_unknown_keys(path: tuple[str, ...], text: str) -> None:
    values = full().to_dict()
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = 1
    with pytest.raises(BadInput, match=text):
        RunConfig.from_dict(values)


@pytest.mark.parametrize("name", ["data", "model"])
@pytest.mark.parametrize("value", [None, {}, {"class_path": ""}])
def test_data_and_model_must_be_given(name: str, value: object) -> None:
    values = full().to_dict() | {name: value}
    with pytest.raises(BadInput, match=f"Expected `{name}` to be given, got nothing: see `fedl"):
        RunConfig.from_dict(values)
    del values[name]
    with pytest.raises(BadInput, match=f"Expected `{name}` to be given"):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("clients", 0, "`federation.clients` to be at least 1, got 0"),
        ("rounds", -2, "`federation.rounds` to be at least 1, got -2"),
        ("batch_size", 0, "`federation.batch_size` to be at least 1, got 0"),
        ("local_epochs", 0, "`federation.local_epochs` to be at least 1, got 0"),
        ("shards_per_client", 0, "`federation.shards_per_client` to be at least 1, got 0"),
        ("alpha", 0.0, "`federation.alpha` to be positive, got 0.0"),
        ("alpha", math.nan, "`federation.alpha` to be positive, got nan"),
        ("client_timeout", 0.0, "`federation.client_timeout` to be positive, got 0.0"),
        ("cpus_per_client", -1.0, "`federation.cpus_per_client` to be positive, got -1.0"),
        ("gpus_per_client", -0.5, "`federation.gpus_per_client` to be at least 0, got -0.5"),
    ],
)
def test_federation_out_of_range(name: str, value: float, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Federation(**{name: value})
    values = full().to_dict()
    values["federation"][name] = value
    if math.isnan(value):
        text = f"`federation.{name}` to be a number, got `nan`"
    with pytest.raises(BadInput, match=text):
        RunConfig.from_dict(values)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clients": []}, r"`victims.clients` to be one or more numbers from 0, got \[\]"),
        (
            {"clients": [1, -1]},
            r"`victims.clients` to be one or more numbers from 0, got \[1, -1\]",
        ),
        ({"rounds": [0]}, r"`victims.rounds` to be one or more numbers from 1, got \[0\]"),
        ({"rounds": []}, r"`victims.rounds` to be one or more numbers from 1"),
    ],
)
def test_victims_out_of_range(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Victims(**settings)


@pytest.mark.parametrize(
    ("mod", "text"),
    [
        ("my.Mod", "`federation.mods` to hold mappings of class_path and init_args, got `my.Mod`"),
        ({}, "`federation.mods` to be given, got nothing"),
        ({"class_path": 3}, "`federation.mods` to name a class by its dotted path, got `3`"),
        ({"class_path": "my.Mod", "init_args": 3}, "in `federation.mods.init_args`, got `3`"),
        ({"class_path": "my.Mod", "args": {}}, "setting of federation.mods `args`: .*`init_args`"),
    ],
)
def test_mods_are_mappings(mod: object, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Federation(protocol="fedavg", mods=[mod])


def test_mods_need_weights() -> None:
    with pytest.raises(BadInput, match=r"`federation.protocol` to be fedavg where .*mods` are gi"):
        Federation(mods=[{"class_path": "my.Mod"}])


def test_victims_beyond_the_federation() -> None:
    small = Federation(clients=3, rounds=2)
    RunConfig(PHOTOS, PLAIN, federation=small, victims=Victims(clients=[2], rounds=[2]))
    with pytest.raises(BadInput, match=r"`victims.clients` to be at most 2, .*3 clients, got \[3"):
        RunConfig(PHOTOS, PLAIN, federation=small, victims=Victims(clients=[3]))
    with pytest.raises(BadInput, match=r"`victims.rounds` to be at most 2, .*2 rounds, got \[1, 3"):
        RunConfig(PHOTOS, PLAIN, federation=small, victims=Victims(rounds=[1, 3]))


@pytest.mark.parametrize("value", [-1.01, 1.5, math.nan])
def test_threshold_out_of_range(value: float) -> None:
    with pytest.raises(
        BadInput, match=f"`metrics.success_threshold` to be from -1 to 1, got {value}"
    ):
        Metrics(success_threshold=value)


def test_negative_seed() -> None:
    with pytest.raises(BadInput, match="`seed` to be at least 0, got -1"):
        RunConfig(PHOTOS, PLAIN, seed=-1)


@pytest.mark.parametrize("precode", [{}, {"precode": None}])
def test_a_baseline_needs_a_bottleneck_to_leave_out(precode: dict[str, None]) -> None:
    model = Plugin("fedleak.models.mlp.SMLP", precode)
    with pytest.raises(BadInput, match=r"`model.precode` to be set where `baseline` is true"):
        RunConfig(PHOTOS, model, baseline=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [", "Expected YAML in .*config.yaml`, got a mistake in line 1"),
        ("- a\n- b\n", "Expected a mapping in .*config.yaml, got"),
        ("", "Expected a mapping in .*config.yaml, got nothing"),
        ("seed: 1\n", "Expected `data` to be given"),
    ],
)
def test_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(BadInput, match=r"configuration of a run at .*, found none"):
        RunConfig.load(path)
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        RunConfig.load(path)


# ---------------------------------------------------------------------------- what follows from it


def test_a_bottleneck_at_its_defaults_is_one_bottleneck() -> None:
    def hashed(precode: dict[str, object] | None) -> str:
        return RunConfig(PHOTOS, Plugin("fedleak.models.lenet.LeNet", {"precode": precode})).hash

    assert hashed({"bottleneck_size": None, "beta": 0.001, "kind": "linear"}) == hashed({})
    others = [
        hashed({"bottleneck_size": size, "beta": 0.001, "kind": kind})
        for size, kind in ((8, "linear"), (256, "convolutional"), (None, "convolutional"))
    ]
    assert len({hashed({}), hashed(None), *others}) == 5


def test_short_names_and_dotted_paths_are_one_configuration() -> None:
    short = {"data": "photos", "model": "smlp", "attacks": "iga", "defenses": ["sign"]}
    long = {
        "data": {"class_path": "fedleak.data.photos.Photos"},
        "model": "fedleak.models.mlp.SMLP",
        "attacks": [{"class_path": "fedleak.attacks.iga.IGA", "init_args": None}],
        "defenses": [{"class_path": "sign", "init_args": {}}],
    }
    assert RunConfig.from_dict(short) == RunConfig.from_dict(long)
    assert RunConfig.from_dict(short).data == PHOTOS


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data": "photoss"}, r"Unknown data set `photoss`: .* Did you mean `photos`\?"),
        ({"model": ["smlp"]}, r"`model` to name one of dmlp, .*, or a class by its dotted path"),
        ({"seed": "one"}, "Expected `seed` to be a whole number, got `one`"),
        ({"seed": True}, "Expected `seed` to be a whole number, got `true`"),
        ({"seed": 2**4000}, "`seed` to be a whole number, got a whole number of 4001 bits"),
        ({"baseline": 1}, "Expected `baseline` to be true or false, got `1`"),
        ({"federation": 3}, "Expected settings as `name: value` in `federation`, got `3`"),
        ({"federation": {"rounds": None}}, "`federation.rounds` to be a whole number, got nothing"),
        ({"federation": {3: 4}}, "Unknown setting of federation `3`"),
        ({"federation": {"mode": "trian"}}, r"`federation.mode` `trian`: .* mean `train`\?"),
        ({"victims": {"clients": [1, "a"]}}, "`victims.clients` to be a list of whole numbers"),
        ({"attacks": {"class_path": "iga", "init_args": {"iterations": "many"}}},
         "Expected `attacks.iterations` to be a whole number, got `many`"),
        ({"model": {"class_path": "smlp", "init_args": {"precode": {"betta": 1}}}},
         r"Unknown setting of precode `betta`: .* Did you mean `beta`\?"),
        ({"model": {"class_path": "smlp", "init_args": {"precode": {"beta": "x"}}}},
         "Expected `model.precode.beta` to be a number, got `x`"),
        ({"attacks": "fedleak.models.mlp.SMLP"}, ""),
    ],
)  # fmt: skip
def test_values_of_another_type(change: dict[str, object], text: str) -> None:
    values = {"data": "photos", "model": "smlp"} | change
    if not text:
        # What may not be on this machine is judged by whoever makes it.
        RunConfig.from_dict(values)
        return
    with pytest.raises(BadInput, match=text):
        RunConfig.from_dict(values)


def test_a_power_of_ten_without_a_point_is_a_number() -> None:
    """YAML 1.1 reads 1e-8 as text."""
    values = {"data": "photos", "model": "smlp", "federation": {"alpha": "1e-2"}}
    assert RunConfig.from_dict(values).federation.alpha == 0.01


def test_hash_tells_configurations_apart_but_not_their_folders() -> None:
    config = full()
    assert dataclasses.replace(config, output="elsewhere").hash == config.hash
    changes = [
        {"seed": 8}, {"device": "cpu"}, {"baseline": False}, {"attacks": ()}, {"defenses": ()},
        {"victims": Victims()}, {"metrics": Metrics()}, {"model": GUARDED, "data": PHOTOS},
        {"federation": dataclasses.replace(config.federation, batch_size=5)},
    ]  # fmt: skip
    hashes = {config.hash, *(dataclasses.replace(config, **change).hash for change in changes)}
    assert len(hashes) == len(changes) + 1


def test_hash_does_not_depend_on_the_order_of_settings() -> None:
    left = Plugin("a.B", {"x": 1, "y": 2})
    right = Plugin("a.B", {"y": 2, "x": 1})
    assert RunConfig(PHOTOS, left).hash == RunConfig(PHOTOS, right).hash


def test_variants_of_a_baseline() -> None:
    config = full()
    assert list(config.variants) == ["baseline", ""]
    bare, guarded = config.variants["baseline"], config.variants[""]
    assert bare.model == PLAIN
    assert guarded.model == GUARDED
    assert (bare.baseline, guarded.baseline) == (False, False)
    assert (bare.model_name, guarded.model_name) == ("smlp", "smlp+precode")
    assert (bare.seed, bare.federation) == (config.seed, config.federation)
    assert config.model.init_args == GUARDED.init_args


def test_one_variant_without() -> None:
    config = RunConfig(PHOTOS, GUARDED)
    assert config.variants == {"": config}


def test_names_in_tables() -> None:
    assert full().data_name == "faces"
    assert RunConfig(PHOTOS, PLAIN).data_name == "photos"
    assert RunConfig(PHOTOS, PLAIN).model_name == "smlp"
    assert RunConfig(PHOTOS, PLAIN).defense_name == "none"
    assert full().defense_name == "pruning(ratio=0.5)+localdpmod(delta=0.5)"
    assert RunConfig(PHOTOS, Plugin("my.module.BigNet")).model_name == "bignet"


@given(
    clients=st.none() | st.lists(st.integers(0, 5), min_size=1),
    rounds=st.none() | st.lists(st.integers(1, 5), min_size=1),
    client=st.integers(0, 5),
    round_=st.integers(1, 5),
)
def test_includes(
    clients: list[int] | None, rounds: list[int] | None, client: int, round_: int
) -> None:
    expected = client in (clients or range(6)) and round_ in (rounds or range(1, 6))
    assert Victims(clients=clients, rounds=rounds).includes(round_, client) == expected


def test_the_models_name_tells_its_bottleneck() -> None:
    def named(precode: object) -> str:
        return RunConfig(
            PHOTOS, Plugin("fedleak.models.lenet.LeNet", {"precode": precode})
        ).model_name

    assert named(None) == "lenet"
    assert named({"bottleneck_size": 8}) == "lenet+precode"
    assert named({"kind": "linear"}) == "lenet+precode"
    assert named({"kind": "convolutional"}) == "lenet+cvb"


def test_clients_of_the_partition_one_each_may_be_left_out() -> None:
    """Then every training sample has one; of other partitions there are 8 as ever."""
    assert Federation().size == 8
    model = Plugin("fedleak.models.mlp.SMLP")
    assert RunConfig(PHOTOS, model).hash == RunConfig(
        PHOTOS, model, federation=Federation(clients=8)
    ).hash  # fmt: skip
    assert RunConfig(PHOTOS, model).with_clients(31).federation.clients == 8
    federation = Federation(partition="one_each", clients_per_round=9)
    config = RunConfig(PHOTOS, model, federation=federation, victims=Victims(clients=[30]))
    assert config.federation.clients is None
    assert RunConfig.from_dict(config.to_dict()) == config
    with pytest.raises(BadInput, match=r"`federation.clients`, got none before the data"):
        _ = config.federation.size
    settled = config.with_clients(31)
    assert (settled.federation.size, settled.with_clients(5)) == (31, settled)
    eight = dataclasses.replace(
        config, federation=Federation(8, partition="one_each"), victims=Victims()
    )
    assert eight.hash != dataclasses.replace(config, victims=Victims()).hash
    with pytest.raises(BadInput, match=r"`victims.clients` to be at most 29, as the"):
        config.with_clients(30)
    with pytest.raises(BadInput, match="clients_per_round` to be from 1 to 8, the number of"):
        dataclasses.replace(config, victims=Victims()).with_clients(8)


# ---------------------------------------------------------------------------- a malicious server


def test_a_server_is_named_as_other_plugins_are() -> None:
    values = {"data": "photos", "model": "smlp", "server": "hyperparameters", "public": 20}
    config = RunConfig.from_dict(values)
    assert config.server == Plugin("fedleak.servers.hyperparameters.Hyperparameters")
    assert config.server_text == "malicious server that chooses hyperparameters, hyperparameters"
    assert RunConfig.from_dict(config.to_dict()) == config
    without = RunConfig.from_dict({"data": "photos", "model": "smlp", "server": None})
    assert without.server_text == "honest-but-curious server"
    assert without.hash == RunConfig.from_dict({"data": "photos", "model": "smlp"}).hash
    assert without.hash != config.hash
    with pytest.raises(BadInput, match="Expected `public` to be at least 0, got -1"):
        dataclasses.replace(config, public=-1)
    with pytest.raises(BadInput, match=r"Unknown malicious server `hyperparameter`: .*mean"):
        RunConfig.from_dict(values | {"server": "hyperparameter"})


@pytest.mark.parametrize(
    ("obeys", "text"),
    [
        ({"lr": "rate"}, r"Unknown setting behind `federation.obeys.lr` `rate`: expected one of"),
        ({"server-round": "batch_size"}, "got `server-round`, by which the server tells the round"),
        ({"a": "batch_size", "b": "batch_size"}, "Expected each setting once in `federation.ob"),
        ({"epochs": "local_epochs"}, "to be fedavg where clients obey a number of local epochs"),
    ],
)
def test_what_clients_cannot_obey(obeys: dict[str, str], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        Federation(obeys=obeys)

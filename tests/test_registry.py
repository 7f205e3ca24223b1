import sys
from pathlib import Path

import pytest

from fedleak import registry
from fedleak.attacks import IGA, NRA
from fedleak.data import Photos
from fedleak.errors import BadInput
from fedleak.models import SMLP, Precode
from fedleak.registry import Plugin, build, class_path, load_class, names, short_name
from tests.toys import OwnClassifier

IMAGES = {"input_shape": (1, 4, 4), "num_classes": 3}


def test_fedleaks_own_names() -> None:
    assert {"iga", "nra"} <= set(names("attacks"))
    assert {"smlp", "dmlp", "lenet", "lenetr"} <= set(names("models"))
    assert {"photos", "cifar10", "cifar100", "npz"} <= set(names("data"))
    assert names("attacks")["nra"].load() is NRA


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_name_can_be_loaded(kind: str) -> None:
    for name, point in names(kind).items():
        path = class_path(kind, name)
        assert load_class(path) is point.load()
        assert short_name(kind, path) == name


def test_dotted_path_stays() -> None:
    assert class_path("models", "my.module.Net") == "my.module.Net"
    assert load_class("tests.toys.OwnClassifier") is OwnClassifier
    assert short_name("models", "my.module.DeepNet") == "deepnet"


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("attacks", "ig", r"Unknown attack `ig`: expected one of .*iga, .*nra.* mean `iga`\?"),
        ("models", "lenett", r"Unknown model `lenett`: .*dmlp, .*smlp.* Did you mean `lenet`\?"),
        ("data", "foto", r"Unknown data set `foto`: .*cifar10, .*Did you mean `photos`\?"),
        ("data", "", r"Unknown data set ``: expected one of [^?]*\.$"),
    ],
)
def test_unknown_name(kind: str, name: str, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        class_path(kind, name)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no_such_package.Net", "importable class at `no_such_package.Net`, but importing `no_su"),
        ("fedleak.attacks.igaa.IGA", "importing `fedleak.attacks.igaa` fails: No module named"),
        ("fedleak.attacks.iga.IGAA", r"class of `fedleak.attacks.iga` `IGAA`: .*mean `IGA`\?"),
        (
            "fedleak.attacks.matching.costs.cosine",
            "Unknown class of `fedleak.attacks.matching.costs` `cosine`",
        ),
        ("Net", "importable class at `Net`"),
        (".toys.Net", "importable class at `.toys.Net`"),
        ("fedleak..IGA", "importable class at `fedleak..IGA`"),
    ],
)
def test_no_class_there(path: str, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        load_class(path)


# -------------------------------------------------------------------------------------- build


def test_builds_with_settings_and_context() -> None:
    attack = build("attacks", Plugin("fedleak.attacks.iga.IGA", {"iterations": 3}), **IMAGES)
    assert isinstance(attack, IGA)
    assert attack.iterations == 3
    model = build("models", Plugin("fedleak.models.mlp.SMLP", {"width": 5}), **IMAGES)
    assert isinstance(model, SMLP)
    assert model.input_shape == (1, 4, 4)
    assert isinstance(build("data", Plugin("fedleak.data.photos.Photos")), Photos)


def test_own_settings_go_before_the_context() -> None:
    plugin = Plugin("fedleak.models.mlp.SMLP", {"num_classes": 7, "width": 2})
    assert build("models", plugin, **IMAGES).num_classes == 7


def test_context_goes_only_where_it_is_taken() -> None:
    plugin = Plugin("tests.toys.OwnClassifier")
    assert build("models", plugin, **IMAGES, unheard_of=1).head.out_features == 3
    assert isinstance(build("data", Plugin("fedleak.data.photos.Photos"), **IMAGES), Photos)


@pytest.mark.parametrize(
    ("kind", "path", "text"),
    [
        ("models", "torch.nn.ReLU", "`model` to name a subclass of LightningModule"),
        ("attacks", "fedleak.models.mlp.SMLP", "`attacks` to name a subclass of Attack, got `fedl"),
        ("data", "fedleak.attacks.iga.IGA", "`data` to name a subclass of PrivateData"),
        ("defenses", "subprocess.Popen", "`defenses` to name a subclass of Defense"),
        ("mods", "subprocess.Popen", "`federation.mods` to hold mods of Flower, got `subprocess"),
    ],
)
def test_a_class_of_another_kind_is_not_called(kind: str, path: str, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        build(kind, Plugin(path, {"args": ["false"]}))


class Open(OwnClassifier):
    """Takes whatever comes."""

    def __init__(self, **settings: object) -> None:
        super().__init__(input_shape=settings["input_shape"], num_classes=settings["num_classes"])
        self.settings = settings


def test_open_ended_constructor() -> None:
    plugin = Plugin("tests.test_registry.Open", {"anything": 1})
    assert build("models", plugin, **IMAGES).settings == IMAGES | {"anything": 1}


@pytest.mark.parametrize("given", [{"bottleneck_size": 3, "beta": 0.5}, Precode(3, 0.5)])
def test_precode_from_a_mapping(given: object) -> None:
    plugin = Plugin("fedleak.models.mlp.SMLP", {"width": 2, "precode": given})
    bottleneck = build("models", plugin, **IMAGES).bottleneck
    assert (bottleneck.decoder.in_features, bottleneck.beta) == (3, 0.5)
    bare = Plugin("fedleak.models.mlp.SMLP", {"width": 2, "precode": None})
    assert list(build("models", bare, **IMAGES).bottleneck.parameters()) == []


@pytest.mark.parametrize(
    ("path", "settings", "text"),
    [
        ("fedleak.attacks.iga.IGA", {"iteration": 3},
         r"Unknown setting of iga `iteration`: .*restarts.* Did you mean `iterations`\?"),
        ("fedleak.models.mlp.SMLP", {"widht": 3},
         r"Unknown setting of smlp `widht`: .*Did you mean `width`\?"),
        ("fedleak.models.mlp.SMLP", {"precode": {"botleneck_size": 3}},
         r"setting of precode `botleneck_size`: .*beta.* Did you mean `bottleneck_size`\?"),
        ("fedleak.models.mlp.SMLP", {"precode": {"bottleneck_size": "big"}},
         "Expected `smlp.precode.bottleneck_size` to be a whole number or null, got `big`"),
        ("fedleak.models.mlp.SMLP", {"precode": {"beta": -1}}, "`precode.beta` to be at least 0"),
        ("fedleak.attacks.iga.IGA", {"iterations": "many"},
         "Expected `iga.iterations` to be a whole number, got `many`"),
        ("fedleak.data.npz.Npz", {}, "Expected settings that `fedleak.data.npz.Npz` takes"),
        ("fedleak.attacks.iga.IGA", {"iterations": 0}, "`iterations` to be at least 1, got 0"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(path: str, settings: dict[str, object], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        build(path.split(".")[1], Plugin(path, settings), **IMAGES)


def test_context_is_not_offered_as_a_setting() -> None:
    with pytest.raises(BadInput) as caught:
        build("models", Plugin("fedleak.models.mlp.SMLP", {"x": 1}), **IMAGES)
    assert "input_shape" not in str(caught.value)
    assert "width" in str(caught.value)


# --------------------------------------------------------------------------- other people's plugins


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution, as pip would leave it, with an attack and a model."""
    (tmp_path / "leaky_pack.py").write_text(
        "from fedleak.attacks import IGA\n"
        "from tests.toys import OwnClassifier\n"
        "class Faster(IGA):\n"
        "    name = 'faster'\n"
        "class Net(OwnClassifier):\n"
        "    pass\n"
    )
    info = tmp_path / "leaky_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fedleak.attacks]\nfaster = leaky_pack:Faster\n\n[fedleak.models]\nnet = leaky_pack:Net\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("leaky_pack", None)


@pytest.mark.usefixtures("third_party")
def test_a_third_partys_plugins_are_found() -> None:
    assert "faster" in names("attacks")
    path = class_path("attacks", "faster")
    assert path == "leaky_pack.Faster"
    attack = build("attacks", Plugin(path, {"iterations": 2}))
    assert isinstance(attack, IGA)
    assert type(attack).__name__ == "Faster"
    assert short_name("attacks", path) == "faster"
    assert class_path("models", "net") == "leaky_pack.Net"
    with pytest.raises(BadInput, match=r"one of .*faster, .*iga.* Did you mean `faster`\?"):
        class_path("attacks", "fster")


def test_and_are_gone_once_it_is() -> None:
    assert "faster" not in names("attacks")

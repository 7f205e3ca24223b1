"""The settings of an audit: their file, and what may change between its parts."""

import json
from pathlib import Path

import pytest
import torch

from fedleak.audit.config import AuditConfig, digest_of, is_audit
from fedleak.errors import BadInput
from tests.audit.apps import imports_undone, write_kind
from tests.audit.made_audit import a_config


def test_the_file_holds_all_settings(tmp_path: Path) -> None:
    config = a_config(public="public.npz", public_code="b" * 64, ray_address="10.0.0.1:6379")
    assert not is_audit(tmp_path)
    config.save(tmp_path / "config.yaml")
    assert is_audit(tmp_path)
    read = AuditConfig.load(tmp_path / "config.yaml")
    assert read == config
    assert read.name == "quickstart"
    json.dumps(read.to_dict())


def test_the_settings_of_an_app(tmp_path: Path) -> None:
    with imports_undone():
        app = write_kind(tmp_path / "app", "table", more="[tool.fedleak]\nvalue-range = [0, 1]")
        settings = {"clients": 3, "rounds": None, "seed": 1, "budget": 60.0}
        config = AuditConfig.of(app, tmp_path / "out", **settings)
        assert config.run_config["lr"] == 0.05
        assert config.settings["value_range"] == (0.0, 1.0)
        config.save(tmp_path / "config.yaml")
        AuditConfig.load(tmp_path / "config.yaml").check_same(config, tmp_path)
        public = "mine.npz", torch.zeros(2, 3), torch.tensor([0, 1])
        other = "mine.npz", torch.ones(2, 3), torch.tensor([0, 1])
        one, two = (AuditConfig.of(app, tmp_path, p, **settings) for p in (public, other))
        assert one.public == two.public == "mine.npz"
        with pytest.raises(BadInput, match="but the public data has been changed"):
            one.check_same(two, tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clients": 5}, "`clients` is `4` there and `5` here: repeat them, or start anew"),
        ({"seed": 3}, "`seed` is `0` there and `3` here"),
        ({"rounds": None}, "`rounds` is `1` there and nothing here"),
        ({"code": 64 * "b"}, "but the app has been changed"),
        ({"run_config": {"lr": 0.1}}, "`run_config` is"),
    ],
)
def test_what_may_not_change(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        a_config(**changes).check_same(a_config(), tmp_path / "config.yaml")
    assert sentence in str(caught.value)
    assert str(tmp_path / "config.yaml") in str(caught.value)


def test_what_may_change(tmp_path: Path) -> None:
    free = {"budget": 3.0, "cpus_per_client": 0.5, "ray_address": "a:1", "app": "/elsewhere/app"}
    a_config(**free).check_same(a_config(), tmp_path)


def test_the_digest_is_of_the_apps_own_code(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "task.py").write_text("a = 1\n")
    (tmp_path / "pyproject.toml").write_text("[tool]\n")
    before = digest_of(tmp_path, tmp_path / "out")
    # Neither results, caches, hidden folders, environments nor data belong to it.
    for name in ("out", ".git", "__pycache__", "env"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other.py").write_text("b = 2\n")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "data.csv").write_text("1\n")
    assert digest_of(tmp_path, tmp_path / "out") == before
    (tmp_path / "package" / "task.py").write_text("a = 2\n")
    changed = digest_of(tmp_path, tmp_path / "out")
    (tmp_path / "package" / "task.py").rename(tmp_path / "package" / "other.py")
    assert len({before, changed, digest_of(tmp_path, tmp_path / "out")}) == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: smlp\n", "Expected the configuration of an audit in"),
        ("- 1\n", "Expected the configuration of an audit in"),
        ("kind: audit\nclients: 3\n", "Expected app, code, server, client, run_config, settings,"),
        ("kind: !!python/object:os.system {}\n", "Expected YAML"),
    ],
)
def test_a_damaged_file(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=sentence):
        AuditConfig.load(path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("clients: 4", "clients: many", "Expected `clients` to be a whole number, got `many`"),
        ("seed: 0", "seed: 0\nseeed: 1", "Did you mean `seed`"),
    ],
)
def test_a_wrong_setting(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    a_config().save(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=sentence):
        AuditConfig.load(path)

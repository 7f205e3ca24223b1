import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedleak.audit.app import AuditSettings, read_app
from fedleak.errors import BadInput
from tests.audit.apps import imports_undone, write_app

SERVER = """
from flwr.serverapp import ServerApp
app = ServerApp()
"""
CLIENT = """
from flwr.clientapp import ClientApp
app = ClientApp()
"""


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with imports_undone():
        yield


def test_an_app_is_read_with_its_run_config_overrides_and_settings(tmp_path: Path) -> None:
    folder = write_app(
        tmp_path, "app_read", server_app=SERVER, client_app=CLIENT,
        config="lr = 0.1\nnote = \"a\"\n[tool.flwr.app.config.data]\nbatch-size = 32",
        more="[tool.fedleak]\nmodel = \"app_read.task:Net\"\nmean = [1, 2]\nvalue-range = [0, 255]",
    )  # fmt: skip
    app = read_app(folder, ["lr=0.5 note='b c'", "data.batch-size=8"])
    assert app.run_config == {
        "num-server-rounds": 2, "lr": 0.5, "note": "b c", "data.batch-size": 8,
    }  # fmt: skip
    assert app.settings == AuditSettings(
        model="app_read.task:Net", mean=(1.0, 2.0), value_range=(0.0, 255.0)
    )
    assert app.rounds_key == "num-server-rounds"
    assert isinstance(app.server_app(), ServerApp)
    assert isinstance(app.client_app(), ClientApp)
    assert pickle.loads(pickle.dumps(app)) == app
    file = tmp_path / "other.toml"
    file.write_text("lr = 2.0\n")
    assert read_app(folder, [str(file)]).run_config["lr"] == 2.0


@pytest.mark.parametrize(
    ("name", "changes", "overrides", "sentence"),
    [
        ("app_a", {"config": "x = [1]"}, [], "Flower refuses it: The value for key x needs"),
        ("app_b", {"more": "[tool.fedleak]\nlos = 'a:b'"}, [],
         r"Unknown setting of \[tool.fedleak\] `los`.*Did you mean `loss`"),
        ("app_c", {"more": "[tool.fedleak]\nmean = 'x'"}, [],
         "Expected `tool.fedleak.mean` to be a list of numbers"),
        ("app_d", {"more": "[tool]\nfedleak = 3"}, [], "Expected .*, got"),
        ("app_e", {"more": "[tool.fedleak]\nmodel = 'Net'"}, [],
         "Expected `tool.fedleak.model` to be a reference such as .*, got 'Net'"),
        ("app_f", {"more": "[tool.fedleak]\nrounds = [0]"}, [], "numbers from 1, got"),
        ("app_g", {"server_app": "import nowhere_at_all"}, [],
         "needs `nowhere_at_all`, which is not installed"),
        ("app_h", {"server_app": "raise KeyError('a\\nb')"}, [],
         "import `app_h.server_app`, the `serverapp` .* raises KeyError: 'a"),
        ("app_i", {"server_app": "import sys; sys.exit(3)"}, [], "raises SystemExit"),
        ("app_j", {"server_app": "ap = 1"}, [], "Expected `app` in the module `app_j.server_app`"),
        ("app_k", {"client_app": SERVER}, [],
         "Expected `app_k.client_app:app`, .*, to be a ClientApp of Flower, got ServerApp"),
        ("app_l", {}, ["num-server-round=3"], "Unknown key .* Did you mean `num-server-rounds`"),
        ("app_m", {}, ["num-server-rounds"], "overrides of the run config as `key=value`, got"),
        ("app_n", {}, ["num-server-rounds=three"], "as `key=value` in TOML"),
        ("app_o", {}, ["nowhere.toml"], "No such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_app_is_one_sentence(
    name: str, changes: dict[str, Any], overrides: list[str], sentence: str, tmp_path: Path
) -> None:
    folder = write_app(tmp_path, name, **{"server_app": SERVER, "client_app": CLIENT} | changes)
    with pytest.raises(BadInput, match=sentence) as caught:
        read_app(folder, overrides)
    assert "\n" not in str(caught.value)


def test_folders_without_an_app_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"Expected the folder of a Flower app at .*nowhere, found"):
        read_app(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="found no such file"):
        read_app(tmp_path)
    file = tmp_path / "pyproject.toml"
    for text, sentence in (
        ("[tool", "Expected TOML in"),
        ("[tool.ruff]", r"found no such section"),
        ("[tool.flwr.app]\npublisher='me'", "but Flower refuses it: Invalid pyproject.toml"),
    ):
        file.write_text(text)
        with pytest.raises(BadInput, match=sentence) as caught:
            read_app(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_module_is_the_one_in_the_folder(tmp_path: Path) -> None:
    """Two apps often have packages of the same name."""
    folders = [
        write_app(tmp_path / side, "app_twin", server_app=SERVER, client_app=CLIENT)
        for side in ("left", "right")
    ]
    read_app(folders[0])
    with pytest.raises(BadInput, match="already imported another one of this name from"):
        read_app(folders[1])
    missing = write_app(tmp_path / "third", "app_third", client_app=CLIENT)
    with pytest.raises(BadInput, match=r"Expected a module `app_third.server_app`"):
        read_app(missing)

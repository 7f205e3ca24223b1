"""Users' items by name: on the page, in TensorBoard, in the terminal's table."""

from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedleak import experiment
from fedleak.config import Federation, RunConfig
from fedleak.registry import Plugin
from fedleak.reporting import Figures, TensorBoard, results_table, write_report
from fedleak.reporting.item_lists import ItemList, read_item_lists
from fedleak.runs.folder import RunFolder
from tests.federation.runs import attack_plugin, in_process

ANALYTIC = Plugin("fedleak.attacks.analytic.Analytic", {})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict]:
    """Two rounds of three users each, attacked in closed form and by a few iterations."""
    config = RunConfig(
        data=Plugin(
            "fedleak.data.planted.PlantedGroups", {"users": 60, "items": 60, "held_out": 10}
        ),
        model=Plugin("fedleak.models.fedvae.FedVAE", {"hidden": 10, "code": 4, "dropout": 0.0}),
        output=str(tmp_path_factory.mktemp("items") / "run"),
        federation=Federation(clients=40, clients_per_round=3, partition="one_each", rounds=2),
        attacks=(ANALYTIC, attack_plugin("nra", cost="relative_error")),
    )
    observers = [TensorBoard(config, (0.0,), (1.0,)), Figures(config, (0.0,), (1.0,))]
    with in_process():
        summary = experiment.run(config, observers)
    return config, summary


def test_lists_of_what_was_true_and_what_was_found(finished) -> None:
    config, _ = finished
    lists = read_item_lists(RunFolder(Path(config.output)), config)
    assert len(lists) == 6
    for found in lists:
        names, f1 = found.found["analytic on fedvae"]
        assert (names, f1) == (found.true, 1.0)
        assert len(names) == 12
        assert dict(found.rows())[names[0]][:2] == [True, True]


def test_markdown_by_hand() -> None:
    found = ItemList(
        1, 7, 0, ["Abba", "AC|DC"], {"nra on fedvae": (["Abba", "Blur"], 0.5), "iga": ([], None)}
    )
    assert found.markdown().splitlines() == [
        "| item | true | nra on fedvae (F1 0.5000) | iga |", "| --- | --- | --- | --- |",
        "| Abba | yes | yes | – |", "| AC\\|DC | yes | – | – |", "| Blur | – | yes | – |",
    ]  # fmt: skip
    assert "| Blur | ? | yes | – |" in ItemList(1, 7, 0, None, found.found).markdown()


def test_the_page_tells_them(finished) -> None:
    config, _ = finished
    page = write_report(RunFolder(Path(config.output))).read_text(encoding="utf-8")
    assert "Analytic reconstructs 6 of 6 users of the undefended fedvae" in page
    assert "exactly the user&#39;s items" in page
    assert "3 of them in a round" in page
    # Of each user the items, and how each of two attacks went.
    assert page.count("<details") == 6 + 2 * 6
    for heading in ("F1", "P", "R"):
        assert f">{heading}</th>" in page
    for word in ("SSIM", "PSNR", "labels"):
        assert word not in page.partition("<body>")[2].partition('id="curves"')[0]


def test_tensorboard_tells_them(finished) -> None:
    config, _ = finished
    folder = RunFolder(Path(config.output)).tensorboard
    attack, model, run = (
        EventAccumulator(str(folder / name)).Reload()
        for name in ("analytic on fedvae", "fedvae", "")
    )
    assert [e.value for e in attack.Scalars("2 attacks/f1 by victim")] == [1.0] * 6
    assert [e.value for e in attack.Scalars("2 attacks/f1 by round")] == [1.0] * 2
    assert [e.value for e in attack.Scalars("6 results/recall")] == [1.0]
    trained = model.Scalars("3 training/global model/test/ndcg@100")
    assert [e.value for e in attack.Scalars("6 results/ndcg@100")] == [trained[-1].value]
    ranking = {"ndcg@100", "recall@20", "recall@50"}
    found = set(model.Tags()["scalars"])
    assert {f"3 training/global model/test/{name}" for name in ranking} <= found
    (text,) = [tag for tag in run.Tags()["tensors"] if tag.startswith("1 reconstructions/items")]
    written = run.Tensors(text)[-1].tensor_proto.string_val[0].decode()
    assert "| item | true | analytic on fedvae (F1 1.0000) |" in written
    assert not run.Tags()["images"]


def test_the_terminals_table(finished) -> None:
    config, summary = finished
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(results_table(summary, config))
    text = console.export_text()
    assert "F1" in text
    assert "SSIM" not in text
    assert "labels" not in text
    assert "success: exactly" in text
    assert max(map(len, text.splitlines())) <= 80

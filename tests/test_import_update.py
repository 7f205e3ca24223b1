"""Files with somebody's gradient, weights or delta become the folder of a run."""

import copy
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from fedleak import experiment
from fedleak.config import RunConfig
from fedleak.errors import BadInput
from fedleak.import_update import Facts, import_update, read_arrays
from fedleak.registry import Plugin
from fedleak.runs.folder import RunFolder
from fedleak.runs.results import read_rows
from fedleak.runs.summary import read_summary
from fedleak.updates.files import Tensors
from fedleak.updates.update import InterceptedUpdate

HERE = "tests.test_import_update"


class Net(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.a(x.flatten(1))))


class Fixed(Net):
    """Made with the same weights each time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for value in self.parameters():
            value.data = 0.3 * torch.randn(value.shape, generator=generator)


RATE = 0.25
IMAGE = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def net_and_gradient() -> tuple[Net, list[Tensor]]:
    torch.manual_seed(0)
    net = Net(48)
    loss = functional.cross_entropy(net(IMAGE), torch.tensor([2]))
    return net, list(torch.autograd.grad(loss, list(net.parameters())))


def values_of(kind: str) -> tuple[Tensors, Tensors]:
    """What was sent and what came, by name."""
    net, gradient = net_and_gradient()
    sent = {name: value.detach().clone() for name, value in net.named_parameters()}
    by_name = dict(zip(sent, gradient, strict=True))
    if kind == "gradient":
        return sent, by_name
    delta = {name: -RATE * value for name, value in by_name.items()}
    return sent, delta if kind == "delta" else {name: sent[name] + delta[name] for name in sent}


def save(values: Any, path: Path) -> Path:
    if path.suffix == ".npz":
        if isinstance(values, list):
            np.savez(path, *[value.numpy() for value in values])
        else:
            np.savez(path, **{name: value.numpy() for name, value in values.items()})
    elif path.suffix == ".safetensors":
        save_file(values, path)
    else:
        torch.save(values, path)
    return path


def facts(sent: Path | None, **changes: Any) -> Facts:
    settings: dict[str, Any] = {
        "model": f"{HERE}:Net", "settings": {"width": 48}, "input_shape": (1, 8, 8), "classes": 4,
        "kind": "gradient", "sent": None if sent is None else str(sent),
    }  # fmt: skip
    return Facts(**settings | changes)


def listed(values: Tensors) -> list[Tensor]:
    return list(values.values())


@pytest.mark.parametrize(
    ("kind", "suffix", "pack"),
    [
        ("gradient", ".pt", dict),
        ("gradient", ".npz", listed),
        ("gradient", ".safetensors", dict),
        ("weights", ".pt", lambda values: {"epoch": 3, "state_dict": values}),
        ("weights", ".pt", lambda values: {"model": values, "lr": 0.1}),
        ("weights", ".pt", lambda values: {"net": values, "optimizer": {"state": {}}}),
        ("weights", ".npz", dict),
        ("delta", ".pt", listed),
    ],
)
def test_an_imported_update_is_attacked_with_the_right_result(
    kind: Any, suffix: str, pack: Callable[[Tensors], Any], tmp_path: Path
) -> None:
    sent, values = values_of(kind)
    file = save(pack(values), tmp_path / f"update{suffix}")
    known = facts(
        save(sent, tmp_path / "sent.safetensors"), kind=kind,
        learning_rate=None if kind == "gradient" else RATE,
    )  # fmt: skip
    output = tmp_path / "run"
    assert import_update(file, known, output) == []
    folder = RunFolder(output)
    (path,) = folder.updates().glob("r*-c*.safetensors")
    update = InterceptedUpdate.load(path)
    assert update.protocol == {"gradient": "fedsgd", "weights": "fedavg", "delta": "delta"}[kind]
    for name, value in values.items():
        assert torch.equal(update.received[f"module.{name}"], value)
        assert torch.equal(update.sent[f"module.{name}"], sent[name])
    assert read_summary(folder.summary)["status"] == "complete"

    attack = Plugin("fedleak.attacks.exact_nra.RGAP")
    attacked = replace(
        RunConfig.load(folder.config), attacks=(attack,), output=str(tmp_path / "attacked")
    )
    experiment.attack_run(output, attacked, trust=True)
    (row,) = read_rows(RunFolder(tmp_path / "attacked").results)
    assert row["ssim"] is None  # nobody knows the truth
    assert row["success"] is None
    with Image.open(RunFolder(tmp_path / "attacked").reconstruction(row)) as picture:
        found = np.asarray(picture) / 255
    assert np.abs(found - IMAGE[0, 0].numpy()).max() < 0.01


@pytest.mark.parametrize(("kind", "epochs"), [("gradient", 1), ("delta", 1), ("delta", 3)])
def test_the_sum_of_two_clients_updates_is_attacked(kind: Any, epochs: int, tmp_path: Path) -> None:
    net, _ = net_and_gradient()
    images = torch.cat([IMAGE, torch.rand(1, 1, 8, 8)])
    sent = {name: value.detach().clone() for name, value in net.named_parameters()}
    total = {name: torch.zeros_like(value) for name, value in sent.items()}
    for image, label in zip(images, (2, 0), strict=True):
        own = copy.deepcopy(net)
        optimizer = torch.optim.SGD(own.parameters(), lr=RATE)
        for _ in range(epochs):
            optimizer.zero_grad()
            functional.cross_entropy(own(image[None]), torch.tensor([label])).backward()
            optimizer.step()
        for name, value in own.named_parameters():
            assert value.grad is not None
            total[name] += value.grad if kind == "gradient" else value.detach() - sent[name]
    known = facts(
        save(sent, tmp_path / "sent.safetensors"), kind=kind, learning_rate=RATE,
        num_samples=2, clients=2, aggregation="sum", epochs=epochs,
    )  # fmt: skip
    output = tmp_path / "run"
    assert import_update(save(total, tmp_path / "update.pt"), known, output) == []
    attacked = replace(
        RunConfig.load(output / "config.yaml"),
        attacks=(Plugin("fedleak.attacks.exact_nra.RGAP", {"joint_steps": 60}),),
        output=str(tmp_path / "attacked"),
    )
    experiment.attack_run(output, attacked, trust=True)
    folder = RunFolder(tmp_path / "attacked")
    rows = read_rows(folder.results)
    assert min(row["explained"] for row in rows) > 0.99
    # The labels, and with them the images, are sorted.
    for row, image in zip(rows, images.flip(0), strict=True):
        with Image.open(folder.reconstruction(row)) as picture:
            assert np.abs(np.asarray(picture) / 255 - image[0].numpy()).max() < 0.02


def test_weights_that_are_not_random_need_not_be_given(tmp_path: Path) -> None:
    net = Fixed()
    loss = functional.cross_entropy(net(IMAGE), torch.tensor([2]))
    gradient = list(torch.autograd.grad(loss, list(net.parameters())))
    file = save(gradient, tmp_path / "update.pt")
    known = facts(None, model=f"{HERE}:Fixed", settings={})
    assert import_update(file, known, tmp_path / "run") == []
    with pytest.raises(
        BadInput, match=r"Expected `--sent`, a file with the weights .*random weights"
    ):
        import_update(file, facts(None), tmp_path / "other")
    with pytest.raises(BadInput, match=r"Expected no run at .*--overwrite"):
        import_update(file, known, tmp_path / "run")
    import_update(file, known, tmp_path / "run", overwrite=True)


def test_a_model_of_fedleak_keeps_its_own_optimiser(tmp_path: Path) -> None:
    from fedleak.models import SMLP

    torch.manual_seed(0)
    net = SMLP(input_shape=(1, 8, 8), num_classes=4, width=12)
    gradient = torch.autograd.grad(net.batch_loss((IMAGE, torch.tensor([1]))), [*net.parameters()])
    file = save(list(gradient), tmp_path / "update.pt")
    sent = save(net.state_dict(), tmp_path / "sent.pt")
    known = facts(sent, model="smlp", settings={"width": 12})
    assert import_update(file, known, tmp_path / "run") == []
    config = RunConfig.load(tmp_path / "run" / "config.yaml")
    assert config.model == Plugin("fedleak.models.mlp.SMLP", {"width": 12})
    with pytest.raises(
        BadInput, match=r"no `--learning_rate` of SMLP, .*see `--model.learning_rate`"
    ):
        import_update(file, replace(known, learning_rate=0.1), tmp_path / "other")


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code of the file was run",))


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    _, gradient = values_of("gradient")
    short = dict(list(gradient.items())[:-1]) | {"c.bias": torch.zeros(4)}
    np.savez(folder / "objects.npz", a=np.array([Evil()], dtype=object))
    (folder / "damaged.npz").write_bytes((folder / "objects.npz").read_bytes()[:200])
    torch.save(Evil(), folder / "evil.pt")
    torch.save(Net(), folder / "module.pt")
    (folder / "damaged.safetensors").write_bytes(b"\1" * 99)
    nan = gradient | {"b.bias": torch.full((4,), torch.nan)}
    code = "which can be read without running code of the file"
    return {
        "none": (folder / "none.pt", "Expected a file at .*none.pt, found none"),
        "suffix": (folder / "update.csv", r"a file of .pt, .pth, .npz, .safetensors, got"),
        "objects": (folder / "objects.npz", code),
        "damaged zip": (folder / "damaged.npz", code),
        "evil": (folder / "evil.pt", code),
        "module": (folder / "module.pt", code),
        "safetensors": (folder / "damaged.safetensors", "a complete safetensors file at"),
        "number": (save(3, folder / "number.pt"), "a dict or a list of tensors in .*, got int"),
        "names": (save(short, folder / "names.pt"), "Unknown parameter in the gradient `c.bias`"),
        "two": (
            save({"model": gradient, "ema": gradient}, folder / "two.pt"),
            "tensors by name under one key of .*two.pt, got them under `model`, `ema`",
        ),
        "nan": (save(nan, folder / "nan.pt"), "got NaN or infinity in `module.b.bias`"),
        "few": (save(listed(gradient)[:2], folder / "few.pt"), "gradient of 4 parameters, got 2"),
        "shapes": (
            save(listed(gradient)[::-1], folder / "shapes.pt"),
            r"`module.a.weight` of shape \(48, 64\) in the gradient, got \(4,\)",
        ),
        "zero": (
            save([0 * value for value in gradient.values()], folder / "zero.pt"),
            "Expected an update, but the gradient is 0: the loss is saturated",
        ),
    }


def test_bad_files_are_refused_in_one_sentence_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = save(values_of("gradient")[0], tmp_path / "sent.safetensors")
    for file, sentence in bad_files(tmp_path).values():
        with pytest.raises(BadInput, match=sentence):
            import_update(file, facts(sent), tmp_path / "run")
    part = save({"a.bias": torch.zeros(48)}, tmp_path / "part.pt")
    good = save(values_of("gradient")[1], tmp_path / "good.pt")
    with pytest.raises(
        BadInput, match=r"Expected all weights that were sent in .*`module.a.weight`"
    ):
        import_update(good, facts(part), tmp_path / "run")
    for change, sentence in (
        ({"kind": "weights"}, "Expected `--learning_rate` where the kind is weights"),
        ({"kind": "change"}, "Unknown kind `change`: expected one of delta, gradient, weights"),
        ({"input_shape": (8, 8)}, r"three sizes of at least 1, \(C, H, W\)"),
        ({"input_shape": (3, 8, 8)}, "images of shape .*3, 8, 8.* but wrapped fails on them"),
        ({"classes": 0}, "`classes` to be at least 1"),
        ({"num_samples": 0}, "samples from 1, got 0"),
        ({"clients": 0}, "`clients` from 1 that divide 1 samples, got 0"),
        ({"clients": 2, "num_samples": 3}, "`clients` from 1 that divide 3 samples, got 2"),
        ({"aggregation": "max"}, "Unknown aggregation `max`"),
        (
            {
                "clients": 2,
                "num_samples": 2,
                "aggregation": "sum",
                "kind": "weights",
                "learning_rate": 0.1,
            },
            "got a sum of the weights of 2 clients",
        ),
        ({"model": "tests.no_such:Net"}, "importing `tests.no_such` fails"),
        ({"model": f"{HERE}:Nut"}, "Unknown class .* `Nut`"),
        ({"settings": {"widht": 3}}, "widht"),
    ):
        with pytest.raises(BadInput, match=sentence):
            import_update(good, facts(sent, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "code of the file" not in capsys.readouterr().out


def test_a_contradiction_is_found_at_the_import(tmp_path: Path) -> None:
    sent, weights = values_of("weights")
    file = save(weights, tmp_path / "update.pt")
    known = facts(save(sent, tmp_path / "sent.safetensors"), kind="gradient")
    findings = import_update(file, known, tmp_path / "run")
    assert any("weights" in finding for finding in findings), findings


def test_an_archive_that_unpacks_to_more_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"")
        archive.filelist[0].file_size = 2**40
    with pytest.raises(BadInput, match=r"at most 4,294,967,296 bytes|reading fails"):
        read_arrays(path)

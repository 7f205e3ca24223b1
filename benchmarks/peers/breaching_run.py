"""Attacks one update with breaching; run by the interpreter of the peer's environment.

Called as ``breaching_run.py JOB RESULT``. JOB is an .npz file: ``settings`` (JSON as text), the
model's parameters ``parameter0``, ``parameter1``, ... and the client's gradient ``gradient0``, ...
in the model's order, its ``labels``, and a ``probe`` batch with ``probe_labels``. RESULT.npz gets
``inputs``, the reconstruction, and ``probe0``, ..., the gradient at the probe, which tells the
caller whether both work on the same model; RESULT.json gets times and versions. It imports nothing
of fedleak, which is not installed here. breaching is used as it is, through its public calls.
"""

import contextlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import breaching
import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 20


def make_model(name: str, input_shape: list[int], num_classes: int) -> nn.Module:
    """The model, its parameters in the order of fedleak's own.

    Args:
        name: ``lenet`` (with sigmoid) or ``smlp``.
        input_shape: ``(C, H, W)``, of sides that 4 divides.
        num_classes: number of classes.
    """
    channels, height, width = input_shape
    if name == "smlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, 1024), nn.ReLU(),
            nn.Linear(1024, 1024), nn.ReLU(),
            nn.Linear(1024, num_classes),
        )  # fmt: skip
    layers: list[nn.Module] = []
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(channels, 12, 5, stride=stride, padding=2), nn.Sigmoid()]
        channels = 12
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(12 * (height // 4) * (width // 4), num_classes)
    )


def attack_config(iterations: int) -> object:
    """The peer's own settings of "inverting gradients", with the PRECODE paper's values.

    Its learning rate falls at 3/8, 5/8, 7/8 as well, and it keeps the best iterate too. Its total
    variation, with exponents of 1, is the same mean of absolute steps to the next column and row,
    but for the steps from the last ones to a border of zeros that it counts besides: at a weight of
    1e-6 no difference to speak of.
    """
    with contextlib.redirect_stdout(sys.stderr):
        return breaching.get_attack_config(
            "invertinggradients",
            overrides=[
                f"optim.max_iterations={iterations}",
                "optim.step_size=0.01",
                "optim.signed=hard",
                "optim.boxed=true",
                "optim.step_size_decay=step-lr",
                "objective.type=cosine-similarity",
                "regularization.total_variation.scale=1e-6",
                "restarts.num_trials=1",
                "init=randn",
            ],
        )


def main(job: Path, result: Path) -> None:
    """Read the job, attack, write the result."""
    with np.load(job, allow_pickle=False) as arrays:
        settings = json.loads(str(arrays["settings"]))
        values = {
            name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "settings"
        }
    torch.set_num_threads(settings["threads"])
    model = make_model(settings["model"], settings["input_shape"], settings["num_classes"])
    parameters = numbered(values, "parameter")
    with torch.no_grad():
        for own, given in zip(model.parameters(), parameters, strict=True):
            own.copy_(given)
    loss = nn.CrossEntropyLoss()
    probe = torch.autograd.grad(
        loss(model(values["probe"]), values["probe_labels"]), list(model.parameters())
    )
    payload = {
        "parameters": parameters,
        "buffers": [],
        "metadata": SimpleNamespace(
            shape=settings["input_shape"], classes=settings["num_classes"],
            mean=settings["mean"], std=settings["std"], modality="vision",
        ),
    }  # fmt: skip

    def attack(iterations: int) -> tuple[dict[str, Tensor], dict[str, object], float]:
        torch.manual_seed(settings["seed"])
        shared = {
            "gradients": numbered(values, "gradient"),
            "buffers": None,
            "metadata": {
                "num_data_points": len(values["labels"]),
                "labels": values["labels"],
                "local_hyperparams": None,  # one gradient, no local steps
            },
        }
        attacker = breaching.attacks.prepare_attack(model, loss, attack_config(iterations))
        started = time.perf_counter()
        # The third argument is what a malicious server knows besides: nothing.
        found, stats = attacker.reconstruct([payload], [shared], {})
        return found, stats, time.perf_counter() - started

    attack(min(WARM_UP, settings["iterations"]))  # its first iterations compile TorchScript
    found, stats, seconds = attack(settings["iterations"])
    np.savez(
        result.with_suffix(".npz"),
        inputs=found["data"].detach().numpy(),
        **{f"probe{place}": value.numpy() for place, value in enumerate(probe)},
    )
    facts = {
        "seconds": seconds,
        "iterations": len(stats["Trial_0_Val"]),
        "cost": float(stats["opt_value"]),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("breaching", "torch", "torchvision")},
    }
    result.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


def numbered(values: dict[str, Tensor], name: str) -> list[Tensor]:
    """The tensors called name0, name1, ..., copied, since breaching may write into them."""
    count = sum(key.startswith(name) for key in values)
    return [values[f"{name}{place}"].clone() for place in range(count)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

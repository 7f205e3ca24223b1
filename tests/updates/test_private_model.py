"""Private copies: the same computation and names, nothing that reaches outside."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import opacus
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm

from fedleak.updates.private_model import private_copy


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def used(model: nn.Module) -> nn.Module:
    model(torch.rand(2, 1, 4, 4)).sum().backward()
    return model


class Holding(nn.Module):
    """Keeps what cannot be copied: a lock, tensors with their graph, a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.lock = threading.Lock()
        self.generator = torch.Generator().manual_seed(4)
        self.kept: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        self.features, self.kept["list"] = y, [y.sum()]
        return y


def compiled_in_place() -> nn.Module:
    model = net()
    model.compile(backend=_refusing)
    return model


def _refusing(*_args: Any) -> Any:
    raise AssertionError("it was compiled")


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(weight_norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(8, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: used(net()),
    "data parallel": lambda: used(nn.DataParallel(net())),
    "compiled": lambda: torch.compile(net(), backend=_refusing),
    "compiled in place": compiled_in_place,
    "part compiled": lambda: nn.Sequential(net(), torch.compile(nn.Tanh(), backend=_refusing)),
    "opacus": lambda: used(opacus.GradSampleModule(net())),
    "weight norm": lambda: used(old_weight_norm()),
    "spectral norm": lambda: used(
        nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(16, 3)))
    ).eval(),
    "holding": lambda: used(Holding()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same(name: str) -> None:
    model = MODELS[name]()
    own = private_copy(private_copy(model))
    assert list(own.state_dict()) == list(model.state_dict())
    assert [n for n, _ in own.named_modules()] == [n for n, _ in model.named_modules()]
    assert [m.training for m in own.modules()] == [m.training for m in model.modules()]
    mine = {value.data_ptr() for value in model.parameters()}
    assert not mine & {value.data_ptr() for value in own.parameters()}
    x = torch.rand(2, 1, 4, 4)
    # Of a compiled model, the original is another one: to run it would compile it.
    plain = model if "compiled" not in name else getattr(model, "_orig_mod", None)
    found = own(x)
    if plain is not None and name != "part compiled":
        torch.testing.assert_close(found, plain(x))
    parameters = list(own.parameters())
    torch.autograd.grad(found.square().sum(), parameters)  # no hook of Opacus is in the way


def test_a_wrapper_passes_attributes_on() -> None:
    class Step(nn.Module):
        def training_step(self, batch: Any, _index: int) -> Any:
            return batch

    assert private_copy(nn.DataParallel(Step())).training_step(3, 0) == 3
    with pytest.raises(AttributeError):
        _ = private_copy(nn.DataParallel(Step())).nothing


def test_a_generator_goes_on_where_it_is() -> None:
    model = Holding()
    own = private_copy(model)
    assert own.generator is not model.generator
    drawn = torch.rand(3, generator=own.generator)
    assert torch.equal(drawn, torch.rand(3, generator=model.generator))


class Talking(pl.LightningModule):
    """Uses everything of the trainer that a training step may use."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"a": loss, "b": loss})
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        for logger in self.loggers:
            logger.log_metrics({"loss": loss})
        if self.trainer.global_step % 10 == 0 and self.trainer.is_global_zero:
            self.print(loss)
        self.trainer.fit_loop.epoch_loop.anything(self.current_epoch)
        assert self.lr_schedulers() is None
        assert self.trainer.training
        self.rate = self.optimizers().param_groups[0]["lr"]
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25)


def test_a_lightning_module_without_its_trainer() -> None:
    own = private_copy(private_copy(Talking()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = own.training_step(torch.ones(3, 2), 0)
    assert loss.requires_grad
    assert own.rate == 0.25
    (group,) = own.optimizers().param_groups
    assert group["params"][0] is own.layer.weight


def test_what_the_stand_in_does_not_know_is_no_number() -> None:
    own = private_copy(Talking())
    with pytest.raises(TypeError):
        _ = own.trainer.estimated_stepping_batches * 2.0

"""Whether a model can be differentiated twice, as gradient matching needs, and what hinders it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.attacks.private_model import guarded, quieten_metrics, twice_differentiable
from fedleak.errors import BadInput, ModelFailed, first_line
from fedleak.models.module_inputs import module_input
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.module_state import state_kept
from fedleak.updates.private_model import private_copy

# More samples say no more.
SAMPLES = 2


def not_differentiable(model: nn.Module, knowledge: Knowledge, error: Exception) -> BadInput:
    """The error for a model that cannot be differentiated twice, which names the module.

    Args:
        model: the private model; it is left as it is.
        knowledge: gives loss and shapes.
        error: what torch or the model raised.
    """
    if isinstance(error, BadInput):
        return error
    kind = type(model).__name__
    try:
        name = _module_that_fails(private_copy(model), knowledge)
    except Exception:  # of the user's own code
        name = None
    where = kind if name is None else f"`{name}` of {kind}"
    return BadInput(
        f"Expected a model that can be differentiated twice, but {where} fails there: "
        f"{first_line(error)}"
    )


def refusal(knowledge: Knowledge) -> str | None:
    """Why a model cannot be attacked by gradient matching, in a sentence. If None, it can.

    Args:
        knowledge: gives model, modes, loss and shapes; a model that fails on floating-point inputs
            of that shape is not refused here.
    """
    (facts,) = guarded([knowledge])
    model = private_copy(facts.model)
    if facts.training is not None:
        model.train(facts.training)
    with torch.random.fork_rng(), twice_differentiable([model]), torch.enable_grad():
        quieten_metrics(model, facts)
        try:
            differentiate_twice(model, facts)
        except ModelFailed:
            return None
        except (RuntimeError, NotImplementedError) as error:
            return str(not_differentiable(model, facts, error))
    return None


def _batch(model: nn.Module, knowledge: Knowledge) -> tuple[Tensor, Tensor]:
    like = next(model.parameters())
    number = min(SAMPLES, max(1, knowledge.num_samples))
    inputs = torch.rand(number, *knowledge.input_shape, dtype=like.dtype, device=like.device)
    return inputs, torch.zeros(number, dtype=torch.long, device=like.device)


def differentiate_twice(model: nn.Module, knowledge: Knowledge) -> None:
    """Differentiate the gradient's squared norm, as torch's backward pass does.

    Args:
        model: a private model; it is changed.
        knowledge: gives loss and shapes.

    Raises:
        RuntimeError: whatever torch raises where that is not possible.
    """
    inputs, labels = _batch(model, knowledge)
    inputs.requires_grad_()
    model.requires_grad_(True)
    with state_kept(model):
        loss = knowledge.loss(model, (inputs.clone(), labels))
    if not loss.requires_grad:
        return
    found = torch.autograd.grad(
        loss, list(model.parameters()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    total = sum((v.square().sum() for v in found), torch.zeros(()).to(loss))
    if total.requires_grad:
        # `torch.autograd.grad` passes over what is marked as differentiable once.
        total.backward()


def _module_that_fails(model: nn.Module, knowledge: Knowledge) -> str | None:
    """Name of the first leaf module whose output cannot be differentiated twice in its input."""
    failing: list[str] = []
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def check(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            first = module_input(args, kwargs)
            if failing or busy or not isinstance(first, Tensor) or not first.is_floating_point():
                return
            busy.append(name)
            try:
                entering = first.detach().clone().requires_grad_()
                rest = {n: v for n, v in kwargs.items() if args or n != next(iter(kwargs))}
                given = module(entering, *args[1:], **rest)
                total = given.sin().sum() if isinstance(given, Tensor) else None
                if total is not None and total.requires_grad:
                    inner = (entering, *module.parameters())
                    found = torch.autograd.grad(
                        total, inner, create_graph=True, allow_unused=True, materialize_grads=True
                    )
                    again = [v.sin().sum() for v in found if v.requires_grad]
                    if again:
                        torch.stack(again).sum().backward()
            except (RuntimeError, NotImplementedError):
                failing.append(name)
            finally:
                busy.clear()

        return check

    busy: list[str] = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
    try:
        with torch.enable_grad(), state_kept(model):
            knowledge.loss(model.requires_grad_(True), _batch(model, knowledge))
    finally:
        for handle in handles:
            handle.remove()
    return failing[0] if failing else None

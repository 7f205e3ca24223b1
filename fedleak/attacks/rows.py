"""Which rows of a model's embeddings a client's samples touched: its tokens, items or users."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from fedleak.attacks.base import Attack, Family, Problem, Reconstruction, Report
from fedleak.attacks.embeddings import EMBEDDINGS, EmbeddingUse, embedding_uses
from fedleak.attacks.labels import recover_labels
from fedleak.errors import BadInput, require
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.optimizer_steps import State, optimizer_step

# Error of the weights' and the optimiser's own arithmetic, in units of rounding in each step.
ROUNDING = 8.0


class Rows(Attack):
    """Finds the rows of each embedding that a client's samples touched, from the update alone.

    A row whose number does not occur in a batch has a gradient of 0 (Melis et al. 2019, section
    4.1). So in a gradient the rows that are not 0 are those of the samples. In returned weights,
    or their change, they are the rows that did not move as a gradient of 0 moves them: by the
    weight decay, momentum and schedule of the client's optimiser, simulated over all its steps.
    This holds for every optimiser and any number of steps. A row that a batch touches with a
    gradient of 0, as that of ``padding_idx``, is not seen.

    The result has them in ``rows``. Its ``inputs`` are whole numbers of the samples' shape: where
    one row alone was touched, the number is known, and -1 stands for an unknown one; the order of a
    sequence, and how often a number occurs, do not follow. An embedding whose weight is used in
    another place too, as where the output layer has the same, is left out, and so is one of which
    more rows moved than the samples have numbers; the findings say so.
    """

    name: ClassVar[str] = "rows"
    paper: ClassVar[str] = (
        "Melis et al., S&P 2019, https://arxiv.org/abs/1805.04049, section 4.1; Gupta et al., "
        "NeurIPS 2022, https://arxiv.org/abs/2205.08514"
    )
    family: ClassVar[Family] = "analytic"
    needs: ClassVar[str] = "a gradient or weights; an embedding of tokens, items or users"
    takes_numbers: ClassVar[bool] = True

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        if not any(isinstance(module, EMBEDDINGS) for module in knowledge.model.modules()):
            return f"{self.name} needs an embedding and {type(knowledge.model).__name__} has none"
        return super().refuses(knowledge)

    def run(self, problem: Problem, report: Report) -> Reconstruction:
        """See :meth:`Attack.run`.

        Raises:
            BadInput: if the rows of no embedding can be told.
        """
        facts = problem.knowledge
        found, findings, uses = find_rows(problem)
        require(
            bool(found),
            f"Expected an embedding whose rows can be told apart in {type(facts.model).__name__}, "
            f"but {'; '.join(findings) or 'no embedding is used'}.",
        )
        inputs = torch.full(problem.batch_shape, -1).flatten()
        for use in uses:
            rows = found.get(use.name)
            if rows is None or len(rows) != 1 or _padding(problem, use) is not None:
                continue
            for positions in use.reads:
                if positions is not None:
                    inputs[positions.flatten()] = rows
        for name, rows in found.items():
            total = problem.model.get_submodule(name).num_embeddings
            findings.append(f"{len(rows)} of {total} rows of {name} were touched")
        return Reconstruction(
            inputs=inputs.reshape(problem.batch_shape),
            labels=_labels(problem),
            findings=tuple(findings),
            rows=found,
        )


def find_rows(problem: Problem) -> tuple[Tensors, list[str], list[EmbeddingUse]]:
    """The rows of each embedding that a client's samples touched.

    Args:
        problem: the update.

    Returns:
        The embedding's path -> numbers of its rows, int64 ``(rows,)``, ascending; what is to be
        said, of embeddings that are left out above all; and how the embeddings are used.
    """
    uses, _ = embedding_uses(problem.knowledge)
    found: Tensors = {}
    findings: list[str] = []
    for use in uses:
        if use.weight in problem.left_out:
            findings.append(f"`{use.weight}` did not move: frozen, or not sent")
        elif use.elsewhere:
            findings.append(
                f"`{use.weight}` is used in another place too, so that every row has a gradient"
            )
        else:
            rows = touched_rows(problem, use.weight)
            most = sum(use.counts)
            if len(rows) > most:
                findings.append(
                    f"{len(rows)} rows of `{use.weight}` moved where the samples have at most "
                    f"{most} numbers: noise, or another optimiser, weight decay or number of "
                    "samples than was told"
                )
                continue
            found[use.name] = rows
            if (padding := _padding(problem, use)) is not None:
                findings.append(f"row {padding} of {use.name} is padding, which has no gradient")
    return found, findings, uses


def touched_rows(problem: Problem, weight: str) -> Tensor:
    """Numbers of a weight's rows that moved otherwise than a gradient of 0 moves them.

    Args:
        problem: the update.
        weight: name of the parameter, ``(rows, dimensions)``.

    Returns:
        int64 ``(touched,)``, ascending.
    """
    facts = problem.knowledge
    if facts.protocol == "fedsgd":
        return problem.gradient[weight].ne(0).any(dim=1).nonzero().flatten().cpu()
    change = problem.change[weight].double().cpu()
    kept = problem.model.get_parameter(weight).detach().cpu()
    if facts.local.optimizer == "unknown":
        return change.ne(0).any(dim=1).nonzero().flatten()
    old = kept.double()
    # Of several clients the mean of what each moves them.
    moved, path = torch.zeros_like(old), torch.zeros_like(old)
    zero = {weight: torch.zeros_like(old)}
    for client in facts.by_client:
        now, state = {weight: old}, State()
        for step in range(client.steps):
            moves, state = optimizer_step(facts.local, now, zero, state, step)
            now = {weight: now[weight] + moves[weight]}
            path += client.weight * moves[weight].abs()
        moved += client.weight * (now[weight] - old)
    size = torch.maximum(old.abs(), (old + change).abs()) + path
    # Without weight decay nothing moves, and any change at all is a gradient's.
    rounding = ROUNDING * facts.steps * torch.finfo(kept.dtype).eps * size
    allowed = torch.where(path > 0, rounding, 0.0)
    off = (change - moved).abs() > allowed
    return off.any(dim=1).nonzero().flatten()


def _padding(problem: Problem, use: EmbeddingUse) -> int | None:
    layer: Any = problem.model.get_submodule(use.name)
    padding: int | None = layer.padding_idx
    return padding


def _labels(problem: Problem) -> Tensor:
    """The labels that are known or recovered; -1 where they cannot be."""
    if problem.knowledge.labels is not None:
        return problem.knowledge.labels
    try:
        return recover_labels(problem.model, problem.gradient, problem.knowledge)
    except BadInput:
        return torch.full((problem.knowledge.num_samples,), -1)

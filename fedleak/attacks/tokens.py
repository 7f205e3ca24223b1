"""Sequences of whole numbers, such as tokens, by a search over embeddings and then over rows."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import Problem, Reconstruction, Report
from fedleak.attacks.embeddings import EmbeddingUse, embedding_uses, takes_numbers
from fedleak.attacks.explained import simulated_update
from fedleak.attacks.matching.costs import CostName
from fedleak.attacks.matching.engine import GradientMatching, StartName
from fedleak.attacks.matching.optimizers import OptimizerName
from fedleak.attacks.module_facts import drawing_layers
from fedleak.attacks.rows import find_rows
from fedleak.errors import require
from fedleak.updates.files import Tensors
from fedleak.updates.knowledge import Knowledge

# Relative squared error of the update below which numbers are those of the client.
EXACT_BELOW = 1e-8
# Costs of two orders that differ by less are equal up to rounding.
SAME_COST = 1e-9


@dataclass(kw_only=True, eq=False, repr=False)
class Tokens(GradientMatching):
    """Matches the gradient over the embeddings' outputs, then takes the nearest rows.

    The samples are whole numbers that an embedding takes. As in DLG (Zhu et al. 2019, section 4.2),
    vectors in place of the embedding's outputs are optimised until the gradient of the layers
    behind it matches the client's, and each becomes the number of the nearest row: of the rows that
    the samples touched (:class:`fedleak.attacks.rows.Rows`), where the update tells them, else of
    all. Then numbers are replaced by others, or exchanged within a sample, as long as that brings
    the whole update nearer to the client's, as in LAMP (Balunovic et al. 2022, section 4); this
    step simulates the client's optimiser and compares the embedding's own rows too. Where several
    embeddings take parts of a sample, as those of users and items, there is this step alone.

    Where the order of a sample's numbers changes nothing, as in a model that takes their mean, the
    findings say so and the numbers are in ascending order.

    Args:
        iterations: see :class:`GradientMatching`.
        learning_rate: see :class:`GradientMatching`.
        cost: see :class:`GradientMatching`.
        signed: see :class:`GradientMatching`.
        optimizer: see :class:`GradientMatching`.
        precision: see :class:`GradientMatching`.
        evaluations: most updates that the second step computes, at least 0.

    Raises:
        BadInput: if a value is out of its range.
    """

    name: ClassVar[str] = "tokens"
    paper: ClassVar[str] = (
        "Zhu et al., NeurIPS 2019, https://arxiv.org/abs/1906.08935, section 4.2; Balunovic et "
        "al., LAMP, NeurIPS 2022, https://arxiv.org/abs/2202.08827"
    )
    needs: ClassVar[str] = "a gradient or weights; samples that are numbers for an embedding"
    takes_numbers: ClassVar[bool] = True
    boxed: ClassVar[bool] = False

    iterations: int = 100
    learning_rate: float = 1.0
    cost: CostName = "relative_error"
    signed: bool = False
    optimizer: OptimizerName = "lbfgs"
    precision: Literal["float32", "float64"] | None = "float64"
    evaluations: int = 5000
    # They are for numbers such as those of images.
    start: StartName = field(default="normal", init=False)
    total_variation: float = field(default=0.0, init=False)
    box: bool = field(default=False, init=False)
    features: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.evaluations >= 0,
            f"Expected `evaluations` to be at least 0, got {self.evaluations}.",
        )

    def refuses(self, knowledge: Knowledge) -> str | None:
        """See :meth:`Attack.refuses`."""
        if takes_numbers(knowledge) is None:
            return (
                f"{self.name} needs samples that are whole numbers for an embedding, and "
                f"{type(knowledge.model).__name__} takes no such samples of shape "
                f"{tuple(knowledge.input_shape)}"
            )
        return super().refuses(knowledge)

    def run_many(
        self, problems: Sequence[Problem], report: Report
    ) -> Iterator[tuple[int, Reconstruction]]:
        """Attack updates one by one, as each has its own rows. See :meth:`Attack.run_many`."""
        for index, problem in enumerate(problems):
            started = time.perf_counter()
            result = self._attack_one(problem, report)
            yield index, replace(result, seconds=time.perf_counter() - started)

    def _attack_one(self, problem: Problem, report: Report) -> Reconstruction:
        rows, findings, uses = find_rows(problem)
        uses = [use for use in uses if use.takes_samples]
        choices = _choices(problem, uses, rows)
        found = self._search_embeddings(problem, uses, choices, report)
        if found is None:
            start = _random_numbers(choices, problem.generator).reshape(problem.batch_shape)
            labels = self.labels_of(problem)
            if labels is None:  # not determined by the gradient
                labels = problem.knowledge.dummy_labels(len(start))
            found = Reconstruction(inputs=start, labels=labels)
        search = _Search(problem, choices, found.labels.cpu())
        random = [*problem.noise_shapes, *drawing_layers(problem.model)]
        numbers = found.inputs.cpu()
        if random:
            findings.append(f"numbers not compared one by one, as {random[0]} draws")
        else:
            numbers = search.improved(numbers, self.evaluations)
            findings += search.findings
        return replace(found, inputs=numbers, rows=rows, findings=(*findings, *found.findings))

    def _search_embeddings(
        self, problem: Problem, uses: list[EmbeddingUse], choices: list[Tensor], report: Report
    ) -> Reconstruction | None:
        """The numbers of the rows nearest to the vectors whose gradient matches; None if none can.

        It takes one embedding that returns a vector for each number, and parameters behind it.
        """
        facts = problem.knowledge
        (name, *others) = {use.name for use in uses}
        layer = problem.model.get_submodule(name)
        if others or not isinstance(layer, nn.Embedding):
            return None
        own = torch.cat([choices[int(at)] for use in uses for at in _all_reads(use)]).unique()
        table = copy.deepcopy(layer)(own.to(layer.weight.device))  # max_norm changes its weight
        if len(own) < 2:
            return None
        loss = _loss_of_vectors(facts, name, own.to(table.device), table.detach())
        model = _without_embedding(problem.model, name)
        names = [n for n, _ in model.named_parameters()]
        left = frozenset(n for n in names if n not in problem.gradient or n in problem.left_out)
        if len(left) == len(names):
            return None
        gradient = {
            n: problem.gradient.get(n, torch.zeros_like(value))
            for n, value in model.named_parameters()
        }
        vectors = replace(
            problem,
            model=model,
            gradient=gradient,
            knowledge=replace(
                facts,
                model=_without_embedding(facts.model, name),
                input_shape=(*facts.input_shape, layer.embedding_dim),
                mean=(0.0,), std=(1.0,),
                loss=loss,
            ),
            left_out=left,
            factors={},
        )  # fmt: skip
        centre, spread = table.mean(dim=0), table.std(dim=0)
        matching = _Matching(self, centre.detach(), spread.detach())
        ((_, result),) = matching.run_many([vectors], report)
        flat = result.inputs.flatten(0, -2)
        nearest = torch.cdist(flat, table.detach().to(flat)).argmin(dim=1)
        return replace(result, inputs=own[nearest.cpu()].reshape(problem.batch_shape))


class _Matching(GradientMatching):
    """Gradient matching from vectors that are distributed as an embedding's rows are."""

    name: ClassVar[str] = "tokens_matching"
    paper: ClassVar[str] = Tokens.paper
    needs: ClassVar[str] = Tokens.needs
    takes_numbers: ClassVar[bool] = True

    def __init__(self, settings: Tokens, centre: Tensor, spread: Tensor) -> None:
        names = (
            "iterations", "learning_rate", "total_variation", "cost", "signed", "box", "decay",
            "restarts", "patience", "at_once", "optimizer", "layers", "batch_norm", "precision",
            "compile", "noise_slots", "simulate_steps",
        )  # fmt: skip
        super().__init__(**{name: getattr(settings, name) for name in names})
        self._centre, self._spread = centre, spread

    def _state(self, problems: Sequence[Problem], known: Sequence[Any]) -> Tensors:
        state = super()._state(problems, known)
        inputs = state["inputs"]
        state["inputs"] = self._centre.to(inputs) + self._spread.to(inputs) * inputs
        return state


class _Vectors(nn.Module):
    """Stands for an embedding and returns given vectors instead of its rows.

    Args:
        layer: the embedding; its weight becomes a buffer, which has no gradient.
    """

    def __init__(self, layer: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx = layer.padding_idx
        self.register_buffer("weight", layer.weight.detach())
        self.given: list[Tensor | None] = []

    def forward(self, numbers: Tensor) -> Tensor:
        """The vectors of the next call; rows where it is called with other numbers."""
        vectors = self.given.pop(0)
        weight = cast(Tensor, self.weight)
        return functional.embedding(numbers, weight) if vectors is None else vectors


def _without_embedding(model: nn.Module, name: str) -> nn.Module:
    """A copy of a model in which vectors stand for the outputs of an embedding."""
    model = copy.deepcopy(model)
    parent, _, own = name.rpartition(".")
    layer: Any = model.get_submodule(name)
    setattr(model.get_submodule(parent), own, _Vectors(layer))
    return model


def _loss_of_vectors(
    facts: Knowledge, name: str, rows: Tensor, table: Tensor
) -> Callable[[nn.Module, Any], Tensor]:
    """The loss as a function of the vectors ``(batch, ..., dimensions)`` and the labels.

    A loss or a model may use the numbers themselves, as a mask or as the next token: there they are
    those of the nearest rows.
    """

    @cache
    def reads_of(samples: int) -> tuple[Tensor | None, ...]:
        uses, _ = embedding_uses(facts, samples=samples)
        (reads,) = [use.reads for use in uses if use.name == name]
        return reads

    # Not while a step is traced.
    for part in (slice(0, facts.num_samples), *facts.local_batches):
        reads_of(part.stop - part.start)

    def of_vectors(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        vectors, labels = batch
        flat = vectors.reshape(-1, vectors.shape[-1])
        like = table.to(flat)
        distance = like.square().sum(dim=1) - 2 * (flat.detach() @ like.T)
        numbers = rows[distance.argmin(dim=1)].reshape(vectors.shape[:-1])
        stand_in: Any = model.get_submodule(name)
        stand_in.given = [
            None
            if at is None
            else flat[at.flatten().to(flat.device)].reshape(*at.shape, vectors.shape[-1])
            for at in reads_of(len(vectors))
        ]
        return facts.loss(model, (numbers, labels))

    return of_vectors


def _all_reads(use: EmbeddingUse) -> Tensor:
    read: Tensor = torch.cat([at.flatten() for at in use.reads if at is not None]).unique()
    return read


def _choices(problem: Problem, uses: list[EmbeddingUse], rows: Tensors) -> list[Tensor]:
    """Of each position of the flattened batch, the numbers that can be there."""
    everything: dict[int, Tensor] = {}
    sizes = []
    for use in uses:
        layer: Any = problem.model.get_submodule(use.name)
        sizes.append(layer.num_embeddings)
        own = rows.get(use.name, torch.arange(layer.num_embeddings))
        if use.name in rows and layer.padding_idx is not None:
            own = torch.cat([own, torch.tensor([layer.padding_idx])]).unique()
        if not len(own):
            own = torch.arange(layer.num_embeddings)
        for position in _all_reads(use).tolist():
            before = everything.get(position)
            both = own if before is None else own[torch.isin(own, before)]
            everything[position] = both if len(both) else own
    size = torch.Size(problem.batch_shape).numel()
    # A number that no embedding reads, such as the last of a sequence, is a target alone.
    return [everything.get(position, torch.arange(min(sizes))) for position in range(size)]


def _random_numbers(choices: list[Tensor], generator: torch.Generator) -> Tensor:
    """Random numbers of all positions, each choice as often as the others up to one."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, own in enumerate(choices):
        groups.setdefault(tuple(own.tolist()), []).append(position)
    found = torch.zeros(len(choices), dtype=torch.long)
    for numbers, positions in groups.items():
        rounds = -(-len(positions) // len(numbers))
        order = [torch.randperm(len(numbers), generator=generator) for _ in range(rounds)]
        drawn = torch.tensor(numbers)[torch.cat(order)[: len(positions)]]
        found[positions] = drawn[torch.randperm(len(positions), generator=generator)]
    return found


class _Search:
    """Replaces and exchanges numbers as long as the update comes nearer to the client's.

    Args:
        problem: the update.
        choices: of each position of the flattened batch, the numbers that can be there.
        labels: the labels ``(num_samples,)``.
    """

    def __init__(self, problem: Problem, choices: list[Tensor], labels: Tensor) -> None:
        self._problem, self._choices, self._labels = problem, choices, labels
        self._model = copy.deepcopy(problem.model).cpu().double().requires_grad_()
        self._facts = replace(
            problem.knowledge,
            labels=None if problem.knowledge.labels is None else problem.knowledge.labels.cpu(),
        )
        names = [n for n, _ in self._model.named_parameters() if n not in problem.left_out]
        source = problem.gradient if self._facts.protocol == "fedsgd" else problem.change
        self._target = {name: source[name].cpu().double() for name in names}
        whole = sum(float(value.square().sum()) for value in self._target.values())
        self._sizes = {
            name: max(float(value.square().sum()), 1e-12 * whole)
            for name, value in self._target.items()
        }
        self._left = 0
        self.findings: list[str] = []

    def improved(self, numbers: Tensor, evaluations: int) -> Tensor:
        """The numbers after all replacements and exchanges that lower the error.

        Args:
            numbers: ``(num_samples, ...)``, to begin with.
            evaluations: most updates to compute.
        """
        if not evaluations:
            return numbers
        self._left = evaluations
        length = numbers[0].numel()
        flat, error = self._descend(numbers.flatten().clone(), length)
        # A local minimum is left by a new start.
        while error >= EXACT_BELOW and self._left > 0:
            start = _random_numbers(self._choices, self._problem.generator)
            other, lower = self._descend(start, length)
            if lower < error:
                flat, error = other, lower
        self.findings.append(f"relative squared error of the numbers' update {error:.1e}")
        if self._any_order(flat, length, error):
            self.findings.append(
                "the order of a sample's numbers is not determined: it changes nothing"
            )
            flat = flat.reshape(len(numbers), length).sort(dim=1).values.flatten()
        return flat.reshape(numbers.shape)

    def _descend(self, flat: Tensor, length: int) -> tuple[Tensor, float]:
        """The numbers at which no single move lowers the error, and their error."""
        error = self._error(flat)
        done = False
        while not done and self._left > 0:
            done = True
            for moved in self._moves(flat, length):
                if self._left <= 0 or error < EXACT_BELOW:
                    break
                changed = flat.clone()
                for position, number in moved.items():
                    changed[position] = number
                other = self._error(changed)
                if other < error * (1 - SAME_COST):
                    # In place: the moves that follow are of the numbers as they are now.
                    flat.copy_(changed)
                    error, done = other, False
        return flat, error

    def _moves(self, flat: Tensor, length: int) -> Iterator[dict[int, int]]:
        for position, own in enumerate(self._choices):
            for number in own.tolist():
                if number != int(flat[position]):
                    yield {position: number}
        yield from self._exchanges(flat, length)

    def _exchanges(self, flat: Tensor, length: int) -> Iterator[dict[int, int]]:
        for first in range(0, len(flat), length):
            for one, other in combinations(range(first, first + length), 2):
                a, b = int(flat[one]), int(flat[other])
                if a != b and b in self._choices[one] and a in self._choices[other]:
                    yield {one: b, other: a}

    def _any_order(self, flat: Tensor, length: int, error: float) -> bool:
        """Whether neighbours can be exchanged everywhere without a change of the update."""
        swaps = [
            move for move in self._exchanges(flat, length)
            if max(move) - min(move) == 1
        ]  # fmt: skip
        for move in swaps:
            changed = flat.clone()
            for position, number in move.items():
                changed[position] = number
            if abs(self._error(changed) - error) > SAME_COST:
                return False
        return bool(swaps)

    def _error(self, flat: Tensor) -> float:
        """Mean over the parameters of the relative squared error of the numbers' update."""
        self._left -= 1
        numbers = flat.reshape(self._problem.batch_shape)
        # A single step moves no weight of the model itself.
        own = self._model if self._facts.is_one_step else copy.deepcopy(self._model)
        with torch.enable_grad():
            found = simulated_update(
                own, self._facts, (numbers, self._labels), {},
                list(self._target), self._facts.protocol, {},
            )  # fmt: skip
        errors = [
            float((found[name] - value).square().sum()) / self._sizes[name]
            for name, value in self._target.items()
        ]
        return sum(errors) / len(errors)

"""Which entry of each window max pooling took, and the input of the convolution before it.

With the choices known, the convolution's weight gradient and its pooled outputs are linear in its
input, and usually more equations than it has entries. So the choices are searched for which the
linear equations hold: one choice out of four for each unit, some hundred units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.attacks.closed_form.pooled_convolution import PooledConvolution

# Weights of the start, stage by stage: squared distance from it over the start's squared norm,
# beside the relative squared errors of the equations.
STAGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
# Rounds of a stage, and solutions with other inequalities at work in a round.
ROUNDS, SOLUTIONS = 60, 4
# Steps of the search within one output channel, and steps for which a changed unit stays.
STEPS, TABU = 30, 6
# Relative squared error of the equations below which they hold: rounding leaves 1e-12.
EXACT = 1e-9
# Pooled outputs below this share of the largest are 0: their units were inactive.
ZERO = 1e-6
# An entry is known if the equations fix it to this share against the start, and its standard error
# is at most that share of the root mean square.
FIXED, ERROR = 0.99, 0.02
# Most entries of the input, and most equations of the outputs; the systems are dense.
LARGEST, MOST_ROWS = 4096, 4096


class PoolChoices(NamedTuple):
    """Result of :func:`pool_choices`.

    Args:
        value: the convolution's input, ``(1, in, H, W)``.
        known: which of its entries the equations determine.
        gradient: gradient of the loss with respect to the input, of the same shape.
        equations: number of equations: entries of the weight's gradient, and active units.
        residual: relative squared error of the weight's gradient.
    """

    value: Tensor
    known: Tensor
    gradient: Tensor
    equations: int
    residual: float


class _Solution(NamedTuple):
    """The input for some choices.

    Args:
        value: the input, flat.
        cost: what it minimises.
        misfit: relative squared error of the weight's gradient.
        left: what is left of the weight's gradient, ``(out * kernel, in)``.
        projector: maps a change of these equations' right side to what remains of it when the input
            is solved for again, ``(out * kernel, out * kernel)``.
        variance: diagonal of the inverse of the normal equations, flat.
    """

    value: Tensor
    cost: float
    misfit: float
    left: Tensor
    projector: Tensor
    variance: Tensor


def searchable(convolution: PooledConvolution) -> bool:
    """Whether the systems of equations are small enough.

    Args:
        convolution: the convolution.
    """
    positions = convolution.patches.shape[1] * len(convolution.weight)
    return convolution.shape.numel() <= LARGEST and positions <= 4 * MOST_ROWS


def pool_choices(
    convolution: PooledConvolution, pooled: Tensor, upstream: Tensor, gradient: Tensor,
    start: Tensor,
) -> PoolChoices:  # fmt: skip
    """The choices of max pooling, and the input, that fit a convolution's gradient and outputs.

    For given choices the input minimises the sum of the relative squared errors of the weight's
    gradient and of the pooled outputs, squared excesses of what was not chosen over what was, of
    inactive units over 0, of a nonnegative input below 0, and the squared distance from the start,
    whose weight falls from stage to stage. From the start's own choices on, those of single units
    are exchanged as long as this sum falls. What an exchange gains is computed with the input
    solved for again; in each output channel several at a time are found by a tabu search, as the
    gradients of neighbouring units nearly cancel and only exchanges of both fit better.

    Args:
        convolution: the convolution, with :func:`searchable`.
        pooled: its pooled output after ReLU, ``(out * units,)`` in any shape.
        upstream: gradient of the loss with respect to that, of the same shape.
        gradient: gradient of the convolution's weight.
        start: estimate of the convolution's input, ``(1, in, H, W)``.
    """
    system = _System(convolution, pooled, upstream, gradient)
    at = start.double().flatten()
    nonnegative = bool((at >= 0).all())
    choices = system.choices_of(at)
    found = None
    for weight in STAGES:
        found = system.solve(choices, at, at, weight, nonnegative)
        for _ in range(ROUNDS):
            if found.cost < EXACT:
                break
            moves = system.moves(choices, found)
            better = None
            for some in (moves, moves[: max(1, len(moves) // 4)], *([move] for move in moves[:3])):
                changed = choices.clone()
                for _, channel, units, taken in some:
                    changed[channel, units] = taken
                tried = system.solve(changed, found.value, at, weight, nonnegative)
                if tried.cost < found.cost * (1 - 1e-9):
                    better = changed, tried
                    break
            if better is None:
                break
            choices, found = better
        at = found.value
    assert found is not None  # there are stages
    return system.result(choices, found)


class _System:
    """The equations of a convolution's input for given choices."""

    def __init__(
        self, convolution: PooledConvolution, pooled: Tensor, upstream: Tensor, gradient: Tensor
    ) -> None:
        self._shape = convolution.shape
        out, self._channels = convolution.weight.shape[:2]
        self._plane = self._shape[2:].numel()
        patches, windows = convolution.patches, convolution.windows
        self._kernel, self._positions = patches.shape
        self._windows, self._patches = windows, patches
        # One position more, where a window reaches into the padding; one pixel more likewise.
        self._pooled = pooled.double().reshape(out, -1)
        self._active = self._pooled > ZERO * self._pooled.max()
        self._upstream = upstream.double().reshape(out, -1) * self._active
        self._weight = convolution.weight.reshape(out, self._channels, -1)
        self._bias = convolution.bias
        self._wanted = gradient.double().reshape(out, self._channels, -1)
        self._flat = self._wanted.transpose(1, 2).reshape(-1, self._channels)
        self._size = self._wanted.square().sum()
        self._scale = self._pooled.square().sum()
        # No output of a window is above the pooled one.
        flat = windows.flatten()
        upper = torch.full((out, self._positions + 1), torch.inf, dtype=torch.float64)
        values = self._pooled[:, :, None].expand(-1, -1, windows.shape[1]).reshape(out, -1)
        upper.scatter_reduce_(1, flat.expand(out, -1), values, "amin")
        self._upper = upper[:, : self._positions]

    def choices_of(self, value: Tensor) -> Tensor:
        """The largest entry of each window, ``(out, units)``, for an input."""
        found: Tensor = self._window_outputs(self._outputs(value)).argmax(dim=2)
        return found

    def _padded(self, value: Tensor) -> Tensor:
        """An input as ``(in, H * W + 1)``, with a 0 for the padding."""
        planes = value.reshape(self._channels, self._plane)
        return torch.cat([planes, planes.new_zeros(self._channels, 1)], dim=1)

    def _outputs(self, value: Tensor) -> Tensor:
        """The convolution's outputs ``(out, positions)``."""
        seen = self._padded(value)[:, self._patches]
        return torch.einsum("oik,ikp->op", self._weight, seen) + self._bias[:, None]

    def _window_outputs(self, outputs: Tensor) -> Tensor:
        """Outputs by window, ``(out, units, size)``."""
        low = outputs.new_full((len(outputs), 1), -torch.inf)
        return torch.cat([outputs, low], dim=1)[:, self._windows]

    def _chosen(self, choices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Channels, units and positions of the active units."""
        channels, units = self._active.nonzero(as_tuple=True)
        return channels, units, self._windows[units, choices[channels, units]]

    def _gradient_matrix(self, choices: Tensor) -> Tensor:
        """Of the weight's gradient by a plane of the input, ``(out * kernel, H * W)``.

        It is the same for every channel of the input.
        """
        channels, units, positions = self._chosen(choices)
        rows = channels[:, None] * self._kernel + torch.arange(self._kernel)
        at = rows * (self._plane + 1) + self._patches[:, positions].mT
        values = self._upstream[channels, units][:, None].expand_as(at)
        matrix = torch.zeros(len(self._weight) * self._kernel * (self._plane + 1)).double()
        matrix.index_add_(0, at.flatten(), values.flatten())
        return matrix.reshape(-1, self._plane + 1)[:, : self._plane]

    def _output_rows(self, channels: Tensor, positions: Tensor) -> Tensor:
        """Of single outputs by the input, ``(rows, in, H * W)``."""
        pixels = self._patches[:, positions].mT[:, None].expand(-1, self._channels, -1)
        rows = torch.zeros(len(channels), self._channels, self._plane + 1, dtype=torch.float64)
        rows.scatter_add_(2, pixels, self._weight[channels])
        return rows[:, :, : self._plane]

    def solve(
        self, choices: Tensor, begin: Tensor, start: Tensor, weight: float, nonnegative: bool
    ) -> _Solution:
        """The input for some choices, near a start; ``begin`` tells the first inequalities."""
        matrix = self._gradient_matrix(choices)
        power = start.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
        normal = matrix.mT @ matrix / self._size
        normal.diagonal().add_(weight / power)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(normal))
        right = matrix.mT @ self._flat / self._size + weight / power * self._planes(start).mT
        alone = (inverse @ right).mT.flatten()
        chosen = torch.zeros_like(self._upper, dtype=torch.bool)
        channels, _, positions = self._chosen(choices)
        chosen[channels, positions] = True
        value, before = begin, None
        roots = (1 / self._scale.sqrt(), 1 / power.sqrt())
        for _ in range(SOLUTIONS):
            used = chosen | (self._outputs(value) > self._upper)
            below = (value < 0) & nonnegative
            if (
                before is not None
                and torch.equal(used, before[0])
                and torch.equal(below, before[1])
            ):
                break
            before = used, below
            value, variance = self._corrected(alone, inverse, used, below, roots)
        excess = self._outputs(value) - self._upper
        excess = torch.where(chosen, excess, excess.relu())
        left = self._flat - matrix @ self._planes(value).mT
        misfit = float(left.square().sum() / self._size)
        negative = float((-value).relu().square().sum()) * nonnegative
        cost = misfit + float(excess.square().sum() / self._scale)
        cost += (negative + weight * float((value - start).square().sum())) / float(power)
        projector = torch.eye(len(matrix)).double() - matrix @ inverse @ matrix.mT / self._size
        return _Solution(value, cost, misfit, left, projector, variance * weight / power)

    def _planes(self, value: Tensor) -> Tensor:
        return value.reshape(self._channels, self._plane)

    def _corrected(
        self, alone: Tensor, inverse: Tensor, used: Tensor, below: Tensor,
        roots: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The solution of the gradient's equations, corrected for those of outputs and of 0.

        By the Woodbury identity; the gradient's are the same for every plane of the input. Also the
        diagonal of the inverse of all normal equations.
        """
        channels, positions = used.nonzero(as_tuple=True)
        rows = self._output_rows(channels, positions) * roots[0]
        wanted = (self._upper - self._bias[:, None])[used] * roots[0]
        at = below.nonzero().flatten()
        units = torch.zeros(len(at), self._channels, self._plane, dtype=torch.float64)
        units[torch.arange(len(at)), at // self._plane, at % self._plane] = roots[1]
        rows = torch.cat([rows, units])
        wanted = torch.cat([wanted, wanted.new_zeros(len(at))])
        solved = (rows @ inverse).flatten(1)
        rows = rows.flatten(1)
        inner = rows @ solved.mT
        inner.diagonal().add_(1)
        factor = torch.linalg.cholesky(inner)
        missing = (rows @ alone - wanted)[:, None]
        value = alone - solved.mT @ torch.cholesky_solve(missing, factor)[:, 0]
        halves = torch.linalg.solve_triangular(factor, solved, upper=False)
        variance = inverse.diagonal().repeat(self._channels) - halves.square().sum(dim=0)
        return value, variance

    def moves(
        self, choices: Tensor, found: _Solution
    ) -> list[tuple[float, int, Tensor, Tensor]]:  # fmt: skip
        """The best exchanges of each output channel: gain, channel, units and their choices.

        Only those that are expected to lower the cost, the best first.
        """
        seen = self._padded(found.value)[:, self._patches]
        seen = torch.cat([seen, seen.new_zeros(*seen.shape[:2], 1)], dim=2)
        outputs = self._window_outputs(self._outputs(found.value))
        moves = []
        for channel in self._active.any(dim=1).nonzero().flatten().tolist():
            units = self._active[channel].nonzero().flatten()
            current = choices[channel, units]
            parts = seen[:, :, self._windows[units]] * self._upstream[channel, units][:, None]
            own = current[None, None, :, None].expand(*parts.shape[:2], -1, 1)
            parts = (parts - parts.gather(3, own)).flatten(2)  # (in, kernel, units * size)
            at = slice(channel * self._kernel, (channel + 1) * self._kernel)
            kept = found.projector[at, at] @ parts
            both = torch.einsum("ckx,cky->xy", parts, kept) / self._size
            values, top = outputs[channel, units], self._pooled[channel, units][:, None]
            equation = (values - top).square() - (values - top).relu().square()
            equation = (equation - equation.gather(1, current[:, None])) / self._scale
            single = -2 * (found.left[at].mT[:, :, None] * parts).sum(dim=(0, 1)) / self._size
            gain, taken = _tabu_search(single + equation.flatten(), both, current)
            changed = taken != current
            if gain < 0 and bool(changed.any()):
                moves.append((gain, channel, units[changed], taken[changed]))
        return sorted(moves, key=lambda move: move[0])

    def result(self, choices: Tensor, found: _Solution) -> PoolChoices:
        """The input that was found."""
        channels, units, positions = self._chosen(choices)
        rows = self._output_rows(channels, positions)
        gradient = torch.einsum("r,rip->ip", self._upstream[channels, units], rows)
        equations = self._flat.numel() + len(channels)
        value = found.value
        # ``variance`` is the share of an entry that comes from the start.
        power = value.square().sum() / STAGES[-1]
        free = max(1, equations - value.numel())
        error = (found.misfit / free * found.variance.clamp_min(0) * power).sqrt()
        rms = value.square().mean().sqrt()
        known = (found.variance <= 1 - FIXED) & (error <= ERROR * rms)
        shape = self._shape
        return PoolChoices(
            value.reshape(shape), known.reshape(shape), gradient.reshape(shape), equations,
            found.misfit,
        )  # fmt: skip


def _tabu_search(single: Tensor, both: Tensor, current: Tensor) -> tuple[float, Tensor]:
    """Choices of a channel's units of least cost ``single . x + x . both . x``.

    A step exchanges the choice that lowers the cost most or raises it least; a changed unit stays
    for some steps, so that the search leaves a local minimum.

    Args:
        single: by unit and choice, ``(units * size,)``; the current choices have 0.
        both: ``(units * size, units * size)``.
        current: the choices at the start, ``(units,)``.

    Returns:
        The cost against the start, and the choices.
    """
    number, size = len(current), len(single) // len(current)
    diagonal = both.diagonal()
    choices, best, best_cost, cost = current.clone(), current, 0.0, 0.0
    free_from = torch.zeros(number, dtype=torch.long)
    offsets = torch.arange(number) * size
    pull = torch.zeros_like(single)  # both @ x
    for step in range(STEPS):
        chosen = offsets + choices
        # Cost with a unit's choice replaced: of what is put in, less of what is taken out.
        out = (single[chosen] + 2 * pull[chosen] - diagonal[chosen])[:, None]
        put = (single + 2 * pull + diagonal).reshape(number, size)
        cross = both[chosen].gather(1, offsets[:, None] + torch.arange(size))
        change = put - out - 2 * cross
        change[torch.arange(number), choices] = torch.inf
        change[free_from > step] = torch.inf
        at = int(change.argmin())
        unit, taken = at // size, at % size
        if not float(change[unit, taken]) < torch.inf:
            break
        cost += float(change[unit, taken])
        pull += both[offsets[unit] + taken] - both[chosen[unit]]
        choices[unit] = taken
        free_from[unit] = step + TABU
        if cost < best_cost:
            best, best_cost = choices.clone(), cost
    return best_cost, best

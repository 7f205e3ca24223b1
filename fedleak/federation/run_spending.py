"""Which mechanisms of differential privacy a run's clients and its server use, round by round."""

import copy
from collections.abc import Sequence
from functools import cache

from flwr.serverapp.strategy import Strategy
from torch import nn

from fedleak.build import client_samples, make_defenses, make_mods
from fedleak.config import RunConfig
from fedleak.data import PrivateData
from fedleak.federation.mechanisms import central_strategy, of_mod, of_strategy
from fedleak.privacy.mechanisms import Mechanism
from fedleak.runs.mechanisms import of_defenses
from fedleak.runs.spending import Spending, check_budget, strongest


def make_spending(
    config: RunConfig,
    data: PrivateData,
    model: nn.Module,
    strategy: Strategy,
    *,
    simulated: bool = True,
) -> Spending | None:
    """What counts the privacy that a federation spends; None if nothing in it adds or bounds noise.

    Args:
        config: the configuration of the federation, with its number of clients.
        data: its data.
        model: the global model.
        strategy: the server's strategy before its first round.
        simulated: whether the clients have the parts of the data that the configuration says.
            Otherwise their numbers of samples are not known.

    Raises:
        BadInput: if `privacy.budget` is given, and nothing has a finite epsilon or it does not hold
            one round.
        MissingExtra: if dp-accounting is not installed and something adds or bounds noise.
    """
    defenses, mods = make_defenses(config), make_mods(config)
    federation, victims = config.federation, config.victims
    parts = client_samples(config, data) if simulated else None
    sizes = None if parts is None else [len(part) for part in parts]
    # Its clipping norm may change from round to round, which changes no epsilon.
    central = copy.copy(central_strategy(strategy))

    @cache
    def of_samples(samples: int | None) -> tuple[Mechanism, ...]:
        found = [of_defenses(defenses, model, federation, samples=samples), *map(of_mod, mods)]
        used = [mechanism for mechanism in found if mechanism is not None]
        if central is not None:  # what only clips serves the server's noise
            used = [m for m in used if m.standard_deviation or m.no_guarantee]
        return tuple(strongest(used, config.privacy.delta))

    @cache
    def of_server(weight: float | None) -> tuple[Mechanism, ...]:
        found = of_strategy(central, largest_weight=weight, mods=mods)
        return () if found is None else (found,)

    def mechanisms(client: int, weight: float | None) -> Sequence[Mechanism]:
        return (*of_samples(None if sizes is None else sizes[client]), *of_server(weight))

    batch = federation.protocol == "fedsgd"
    spending = Spending(
        config.model_name,
        mechanisms,
        config.privacy,
        # A gradient is of one batch.
        sizes=None if sizes is None or batch else sizes,
        left_out=lambda round_, client: (
            config.server is not None and victims.includes(round_, client)
        ),
    )
    budget = config.privacy.budget
    if budget is not None:
        everybody = range(federation.size)
        drawn = federation.clients_per_round or "fraction_train" in federation.strategy_options
        weight = None if drawn else spending.planned_weight(1, everybody)
        most = [0] if sizes is None else [sizes.index(max(sizes))]
        for used in {tuple(mechanisms(c, weight)) for c in (most if drawn else everybody)}:
            check_budget(budget, used)
    return spending if mechanisms(0, None) else None

"""One attack on several updates, so that an update that cannot be attacked costs no other."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedleak.attacks.base import Attack, Reconstruction, Report
from fedleak.errors import BadInput
from fedleak.updates.knowledge import Knowledge
from fedleak.updates.update import InterceptedUpdate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """An update that an attack made nothing of.

    Args:
        update: the update.
        reason: why, in a sentence.
        broken: whether the attack raised what it should not, as a faulty plugin does.
    """

    update: InterceptedUpdate
    reason: str
    broken: bool = False


def attack_updates(
    attack: Attack,
    updates: Sequence[InterceptedUpdate],
    knowledge: Callable[[InterceptedUpdate], Knowledge],
    *,
    finished: Callable[[InterceptedUpdate, Reconstruction], None],
    seed: int = 0,
    device: str = "cpu",
    report: Report | None = None,
    ends: tuple[type[Exception], ...] = (),
) -> list[Refusal]:
    """Attack updates in one call; if that fails, those that are left one by one.

    Args:
        attack: the attack.
        updates: what the server saw, at most as many as are to be attacked together.
        knowledge: what the server knows of an update.
        finished: called with every reconstruction as soon as it is there; what it raises is passed
            on.
        seed: seed of the attack.
        device: where to compute.
        report: called now and then with the progress.
        ends: exceptions that end everything, such as one that tells a run to stop.

    Returns:
        The updates that could not be attacked, and why.
    """
    done: set[int] = set()
    fault: list[BaseException] = []

    def attempt(positions: list[int]) -> tuple[str, bool] | None:
        def record(index: int, reconstruction: Reconstruction) -> None:
            try:
                finished(updates[positions[index]], reconstruction)
            except BaseException as error:
                fault.append(error)
                raise
            done.add(positions[index])

        chosen = [updates[position] for position in positions]
        try:
            known = [knowledge(update) for update in chosen]
            attack(chosen, known, seed=seed, device=device, report=report, finished=record)
        except Exception as error:
            # What comes of a reconstruction is not the attack's affair.
            if fault or isinstance(error, ends):
                raise
            if isinstance(error, BadInput):
                return str(error), False
            logger.warning("%s failed", attack.name, exc_info=error)
            return f"{attack.name} failed: {type(error).__name__}: {error}", True
        return None

    failure = attempt(list(range(len(updates))))
    if failure is None:
        return []
    left = [position for position in range(len(updates)) if position not in done]
    if len(updates) == 1:
        return [Refusal(updates[0], *failure)]
    refused = [(position, attempt([position])) for position in left]
    return [Refusal(updates[position], *found) for position, found in refused if found is not None]

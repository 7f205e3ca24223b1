"""Which parts of the model clients send."""

from collections.abc import Sequence

from fedleak.audit.ladder import Victim

MOST_NAMES = 5


def layers_not_sent(victims: Sequence[Victim]) -> list[str]:
    """What the clients' updates lack of the model's parameters, a sentence for each lack.

    Args:
        victims: the victims.
    """
    groups: dict[tuple[str, ...], list[Victim]] = {}
    for victim in victims:
        received = set(victim.update.received)
        names = [name for name, _ in victim.known.knowledge.model.named_parameters()]
        missing = tuple(name for name in names if name not in received)
        if missing and len(missing) < len(names):
            groups.setdefault(missing, []).append(victim)
    return [_sentence(missing, own, len(victims)) for missing, own in groups.items()]


def _sentence(missing: Sequence[str], own: Sequence[Victim], number: int) -> str:
    total = len(list(own[0].known.knowledge.model.parameters()))
    names = ", ".join(f"`{name}`" for name in missing[:MOST_NAMES])
    more = f" and {len(missing) - MOST_NAMES} more" if len(missing) > MOST_NAMES else ""
    return (
        f"{len(own)} of {number} updates have {total - len(missing)} of the model's {total} "
        f"parameters and lack {names}{more}: what those would tell is not known"
    )

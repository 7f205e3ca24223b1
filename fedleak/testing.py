"""What tests of a Flower app call: an audit whose verdict is an assertion."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedleak.errors import require
from fedleak.extras import extras_explained

if TYPE_CHECKING:
    from fedleak.audit.app import FlowerApp
    from fedleak.audit.run import Audit


def assert_no_leak(
    app: "str | Path | FlowerApp",
    *,
    limits: float | Mapping[str, float] = 0.1,
    clients: int = 10,
    rounds: int | None = None,
    run_config: str = "",
    budget: str | float = "8m",
    public: str | Path | None = None,
    seed: int = 0,
    output: str | Path | None = None,
) -> "Audit":
    """Audit a Flower app, and raise if its server could learn more than the limits allow.

    The app runs as it is on Flower's simulation engine, in the way of ``fedleak audit``. Needs the
    extra ``federation``.

    Args:
        app: the folder of the app's pyproject.toml, or an app that was read.
        limits: how far an answer may go from the guess without the update (0) to the exact answer
            (1): one number for all questions that messages do not answer in clear, or question ->
            number, where ``*`` stands for all others. A question without a limit is not held to
            any.
        clients: number of simulated clients, at least 1.
        rounds: number of rounds. If None, as the app's run config says.
        run_config: other values of the app's run config, as ``flwr run`` takes them, such as
            ``"num-server-rounds=1 lr=0.1"``; of an app that was read they are set already.
        budget: time for the attacks: seconds, or a text such as ``90s`` or ``10m``.
        public: an .npz file with ``inputs`` and ``labels`` like the clients'. If None, made-up ones
            are used.
        seed: seed of the attacks.
        output: folder of the audit, which must be empty. If None, a temporary one that is removed.

    Returns:
        What was found, for further assertions.

    Raises:
        AssertionError: if an answer exceeds a limit, or nothing is proven, as where the audit's own
            client is not reconstructed. Its text has the sentence of every answer.
        BadInput: if an argument or the app is wrong, or no update can be attacked.
        RunFailed: if the app, or the engine, failed.
    """
    with extras_explained():
        from fedleak.audit.app import FlowerApp, read_app
        from fedleak.audit.public_samples import read_public
        from fedleak.audit.run import audit, read_span
        from fedleak.audit.verdict import check_limits
    given = dict(limits) if isinstance(limits, Mapping) else {"*": float(limits)}
    require(bool(given), "Expected a limit for at least one question, got none.")
    check_limits(given)
    seconds = read_span(budget) if isinstance(budget, str) else float(budget)
    samples = None if public is None else read_public(Path(public))
    if isinstance(app, FlowerApp):
        require(not run_config, "Expected `run_config` with the folder of an app, got a read app.")
    else:
        app = read_app(app, [run_config] if run_config else [])
    with tempfile.TemporaryDirectory(prefix="fedleak-audit-") as folder:
        found = audit(
            app, Path(folder) / "audit" if output is None else Path(output), clients=clients,
            rounds=rounds, budget=seconds, public=samples, seed=seed,
        )  # fmt: skip
    verdict = found.verdict
    if verdict.exit_code(given):
        raise AssertionError(_reason(found, given))
    return found


def _reason(found: "Audit", limits: Mapping[str, float]) -> str:
    """Why an audit is no success, with the sentence of every answer."""
    verdict = found.verdict
    above = verdict.above(limits)
    first = (
        f"Above the limits: {', '.join(f'{one.title} {one.share:.2f}' for one in above)}."
        if above else verdict.sentence
    )  # fmt: skip
    lines = [first, *(f"- {answer.sentence}" for answer in verdict.answers)]
    lines += [f"Canary: {verdict.canary_note}."] if verdict.canary_note else []
    return "\n".join([*lines, *(f"Note: {note}" for note in found.notes)])

"""How much longer a round of a Flower app takes when its server, or an audit, listens."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from benchmarks.measure import Facts, Figure, median, ratios
from fedleak.audit.app import FlowerApp, read_app
from fedleak.audit.simulation import run_app
from fedleak.federation.engine.ray_engine import Resources, run_engine
from fedleak.federation.engine.server import ServerControl

APP = Path(__file__).parent / "quickstart"
Engine = Callable[..., None]


def malicious_round_overhead(
    clients: int = 10,
    images: int = 4000,
    rounds: int = 4,
    repetitions: int = 3,
    engine: Engine = run_engine,
) -> Figure:
    """Wall time of a round whose strategy intercepts every update, over that of FedAvg alone.

    The updates are written to disk; no attack runs within the round.

    Args:
        clients: number of simulated clients, all of which train in every round.
        images: number of images of a client.
        rounds: number of timed rounds of a run.
        repetitions: number of runs of each side, in turns.
        engine: runs ServerApp and ClientApp.
    """

    def malicious(app: FlowerApp, folder: Path) -> None:
        updates = {"malicious": str(folder / "updates")}
        _run(replace(app, run_config=app.run_config | updates), clients, engine)

    return _compared(
        malicious, "a listening strategy", clients, images, rounds, repetitions, engine
    )


def audit_round_overhead(
    clients: int = 10,
    images: int = 4000,
    rounds: int = 4,
    repetitions: int = 3,
    engine: Engine = run_engine,
) -> Figure:
    """Wall time of a round of an audited app, over that of the same app alone.

    Its messages are listened to, and its clients' trainings are recorded, batches included.

    Args:
        clients: see :func:`malicious_round_overhead`.
        images: see there.
        rounds: see there.
        repetitions: see there.
        engine: see there.
    """

    def audited(app: FlowerApp, folder: Path) -> None:
        run_app(app, folder, clients=clients, engine=engine)

    return _compared(audited, "an audit", clients, images, rounds, repetitions, engine)


def _compared(
    listening: Callable[[FlowerApp, Path], None],
    name: str,
    clients: int,
    images: int,
    rounds: int,
    repetitions: int,
    engine: Engine,
) -> Figure:
    # Workers start in the first round.
    config = [f"num-server-rounds={rounds + 1} images={images}"]
    app = read_app(APP, config)
    seconds: dict[str, list[float]] = {"plain": [], "listening": []}
    for _ in range(repetitions):
        _run(app, clients, engine)
        seconds["plain"].append(_mean_round())
        with tempfile.TemporaryDirectory() as folder:
            listening(app, Path(folder) / "run")
            seconds["listening"].append(_mean_round())
    samples = ratios(seconds["listening"], seconds["plain"])
    setting: Facts = {
        "app": "two convolutions with max pooling, three linear layers; FedAvg",
        "data": "made-up images 3x32x32", "clients": clients, "images_of_a_client": images,
        "batch_size": 32, "epochs": 1, "optimiser": "SGD, momentum 0.9", "rounds": rounds,
    }  # fmt: skip
    return Figure(
        value=median(samples),
        unit=f"times as long with {name} as without",
        samples=samples,
        of="pairs of runs in turn",
        setting=setting,
        details={
            "plain_round_seconds": median(seconds["plain"]),
            "listening_round_seconds": median(seconds["listening"]),
        },
    )


def _mean_round() -> float:
    """Mean seconds of the rounds of the last run, but the first."""
    ends: list[float] = sys.modules["bench_quickstart.server_app"].ends
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _run(app: FlowerApp, clients: int, engine: Engine) -> None:
    """Run the app with nobody listening besides its own strategy."""
    server, control = ServerApp(), ServerControl()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        control.started.set()
        try:
            context.run_config = dict(app.run_config)
            app.server_app()(grid, context)
        except BaseException as error:
            control.error = error
            raise
        finally:
            control.ended.set()

    engine(Resources(clients), server, app.client_app(), control)
    if control.error is not None:
        raise RuntimeError("The app failed.") from control.error

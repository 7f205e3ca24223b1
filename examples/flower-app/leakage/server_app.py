"""The ServerApp: a malicious server that follows the protocol and attacks what clients send."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import fedleak
from fedleak.errors import BadInput, RunFailed, require
from fedleak.federation import AppFederation, is_simulation, read_flag, read_run_config
from fedleak.preflight import prepare
from fedleak.reporting import Figures, TensorBoard, write_report
from fedleak.runs.folder import RunFolder
from fedleak.runs.observer import Observer

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation and the attacks, and write the run's folder.

    Args:
        grid: the nodes. Simulated clients store the truth in the folder, for the scores; nodes of
            a deployment do not.
        context: its run config has the settings, see :func:`fedleak.federation.read_run_config`.

    Raises:
        BadInput: if a setting is wrong; nothing is written then.
        RunFailed: if the federation failed, or an update could not be attacked.
    """
    try:
        run(grid, context.run_config)
    except (BadInput, RunFailed) as error:
        print(f"flower-app: {error}", flush=True)
        raise


def run(grid: Grid, settings: Mapping[str, Any]) -> None:
    """See :func:`main`."""
    config = read_run_config(settings)
    resume, overwrite = read_flag(settings, "resume"), read_flag(settings, "overwrite")
    folder = RunFolder(Path(config.output))
    require(
        resume or overwrite or not folder.config.exists(),
        f"Expected no run at {folder.path}, found one: set `resume` or `overwrite` to true, or "
        "another `output`.",
    )
    parts = prepare(config)
    mean, std = parts.data.mean, parts.data.std
    summary = fedleak.run(
        config,
        [Lines(), TensorBoard(config, mean, std), Figures(config, mean, std)],
        parts=parts,
        resume=resume,
        overwrite=overwrite,
        federate=AppFederation(grid),
        scored=is_simulation(grid),
    )
    for entry in summary["attacks"]:
        ssim = "no score" if entry["ssim"] is None else f"SSIM {entry['ssim']:.4f}"
        print(f"{entry['attack']} on {entry['model']}: {entry['n']} samples, {ssim}", flush=True)
    print(f"Look at {write_report(folder, trust=True)}", flush=True)


class Lines(Observer):
    """Prints what happens, a line each, for `flwr log`."""

    def round_evaluated(self, model: str, round_: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Observer`."""
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"round {round_}: {values or 'not evaluated'}", flush=True)

    def client_failed(self, model: str, round_: int, client: int, reason: str) -> None:
        """See :class:`Observer`."""
        print(f"round {round_}: client {client} failed: {reason}", flush=True)

    def victim_attacked(
        self,
        attack: str,
        model: str,
        update: fedleak.InterceptedUpdate,
        truth: fedleak.GroundTruth | None,
        reconstruction: fedleak.Reconstruction,
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """See :class:`Observer`."""
        explained = f"{reconstruction.explained:.1%} of the update explained"
        print(f"{update.key} attacked by {attack}: {explained}", flush=True)

    def attack_skipped(self, attack: str, model: str, reason: str) -> None:
        """See :class:`Observer`."""
        print(f"{attack} does not apply to {model}: {reason}", flush=True)

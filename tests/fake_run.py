"""Stands in for `fedleak run` in the tests of a sweep: the same files, and nothing to wait for.

Called with the configuration, the run's folder, and settings as JSON: ``hold`` (after so many
victims it waits for the file ``go`` beside the cells), ``fail`` (name of a cell that fails),
``stubborn`` (name of one that does not heed SIGTERM), ``children`` (whether it starts a process of
its own). It imports nothing slow.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = [
    "round",
    "client",
    "sample",
    "attack",
    "defense",
    "model",
    "dataset",
    "batch_size",
    "mse",
    "psnr",
    "ssim",
    "success",
    "noise_mse",
    "cost",
    "iterations",
    "seconds",
]
CLIENTS = 3


def main(config: Path, folder: Path, settings: dict) -> int:
    if settings.get("stubborn") == folder.name:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(config, folder / "config.yaml")
    pids = [os.getpid()]
    if settings.get("children"):
        pids.append(subprocess.Popen(["sleep", "600"]).pid)
    (folder / "pids.json").write_text(json.dumps(pids))
    threads = {n: os.environ[n] for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    (folder / "threads.json").write_text(json.dumps(threads))
    if settings.get("fail") == folder.name:
        print("line 2\n\nfedleak: Expected better weather, got rain.", file=sys.stderr)
        return 2
    (folder / "summary.json").write_text('{"status": "running"}')
    results = folder / "results.csv"
    done = repaired(results)
    for client in range(CLIENTS):
        if str(client) not in done:
            held = time.monotonic()
            while client == settings.get("hold") and not (folder.parent / "go").exists():
                time.sleep(0.02)
                if time.monotonic() - held > 120:
                    return 3
            append(results, {"round": 1, "client": client, "sample": 0, "batch_size": 1})
    (folder / "summary.json").write_text('{"status": "complete"}')
    return 0


def repaired(path: Path) -> set[str]:
    """The clients that are done, without what is half written."""
    if not path.exists():
        return set()
    text = path.read_text()
    path.write_text(text[: text.rfind("\n") + 1])
    with path.open(newline="") as file:
        return {row["client"] for row in csv.DictReader(file)}


def append(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))

"""Where, when and with which versions a figure was measured."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "numpy", "flwr", "ray", "pytorch-lightning")
# Changes in these folders can change a figure.
MEASURED = ("fedleak", "benchmarks/*.py", "benchmarks/peers/*.py")


def conditions() -> dict[str, Any]:
    """Date, commit, machine and versions of a measurement that begins now.

    The load average is that of the minute before: above 0, other processes shared the processor.
    """
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that are installed; attacks need no Flower."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Cores, processor model, memory in GiB and operating system."""
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
    }


def processor() -> str:
    """The processor's model, as the operating system names it, or "unknown"."""
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or "unknown"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"


def commit() -> str:
    """The commit of the working tree, "(modified)" behind it where measured code differs from it.

    "unknown" outside a git repository.
    """
    found = _output("git", "rev-parse", "--short=10", "HEAD")
    if not found:
        return "unknown"
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", *MEASURED)
    return f"{found} (modified)" if changed else found


def _output(*command: str) -> str:
    """What a command prints; "" if it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

"""How many cores there are, and how many of them torch may use."""

import os

import torch


def available_cores() -> int:
    """Number of cores that this process may use: those it may run on, or ``OMP_NUM_THREADS``.

    The variable is how a parent tells a process its share, as a sweep of several runs does.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(share)) if share.isdigit() and int(share) >= 1 else cores


def cap_threads(share: float) -> None:
    """Keep torch to a process's share of the cores.

    Two torch processes that each use all cores run several times slower than with one thread each.

    Args:
        share: number of cores; less than 1 counts as 1.
    """
    torch.set_num_threads(max(1, min(int(share), available_cores())))

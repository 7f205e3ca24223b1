"""The number of available cores, and the number of threads that torch uses."""

import os

import torch


def available_cores() -> int:
    """Number of cores that this process may use, at least 1.

    The cores of its CPU affinity, or ``OMP_NUM_THREADS`` if that is less: a parent process, such as
    a sweep of several runs, sets this variable to a process's share.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(share)) if share.isdigit() and int(share) >= 1 else cores


def cap_threads(share: float) -> None:
    """Limit torch's threads to a process's share of the cores.

    Two torch processes that each use all cores run several times slower than with one thread each.

    Args:
        share: number of cores; a share below 1 counts as 1.
    """
    torch.set_num_threads(max(1, min(int(share), available_cores())))

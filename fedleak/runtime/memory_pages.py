"""Large pages of memory for large tensors."""

import os
from collections.abc import MutableMapping

# Allocating a large tensor takes several times longer in small pages of memory than in large ones.
# torch reads the first variable when it allocates its first tensor, glibc the second when a process
# starts, so both are set for the clients of a federation and the runs of a sweep.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def use_large_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make processes that are started from now on allocate large tensors in large pages.

    Args:
        environment: the environment of these processes; variables that are already set stay.
    """
    for name, value in LARGE_PAGES.items():
        environment.setdefault(name, value)

"""Large pages of memory for large tensors."""

import os
from collections.abc import MutableMapping

# A large tensor that is made anew costs several times as long in small pages of memory as in large
# ones. torch reads the first when it makes its first tensor, the C library of Linux the second when
# a process starts: a federation's clients, and the runs of a sweep.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def use_large_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have processes that start from now on keep large tensors in large pages.

    Args:
        environment: what they are started with; what somebody has set there stays.
    """
    for name, value in LARGE_PAGES.items():
        environment.setdefault(name, value)

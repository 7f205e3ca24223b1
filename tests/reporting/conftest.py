"""A finished run, made once for all tests of its output."""

import pytest

from tests.federation.runs import (
    Finished,
    finished_run,
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory)

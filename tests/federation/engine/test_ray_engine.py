"""The engine's own settings; ``test_simulation.py`` runs federations on it."""

import os
import subprocess
import sys

import pytest

from fedleak.errors import BadInput
from fedleak.federation.engine.ray_engine import Resources


def test_no_simulation_sends_telemetry_whatever_was_imported_before() -> None:
    """Flower reads its variable once, and may have been imported for the strategy alone."""
    code = (
        "import flwr.supercore.telemetry as telemetry\n"
        "assert telemetry.FLWR_TELEMETRY_ENABLED == '1'\n"
        "import fedleak.federation.engine.ray_engine\n"
        "import os\n"
        "names = ('FLWR_TELEMETRY_ENABLED', 'RAY_USAGE_STATS_ENABLED')\n"
        "print(telemetry.FLWR_TELEMETRY_ENABLED, *(os.environ[name] for name in names))\n"
    )
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert found.stdout.split() == ["0", "0", "0"], found.stderr


def test_resources_are_named_as_the_caller_names_them() -> None:
    assert Resources(1, cpus_per_client=1000.5).cpus == 1001
    for resources, sentence in (
        (Resources(1, gpus_per_client=100), "Expected `gpus_per_client` to be at most the number"),
        (Resources(1, ray_address="127.0.0.1:1"), "Expected a Ray cluster at `ray_address` 127"),
    ):
        with pytest.raises(BadInput, match=sentence):
            resources.check()
    Resources(1).check()

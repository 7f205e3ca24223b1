"""breaching works on the same model and cost, or nothing is compared."""

import pytest

from benchmarks.peers import compare
from benchmarks.victims import make_victims
from fedleak.models import LeNet


def test_without_the_peers_environment_it_says_how_to_make_it(monkeypatch, tmp_path):
    updates, knowledge, _ = make_victims(LeNet, 1)
    monkeypatch.setattr(compare, "INTERPRETER", tmp_path / "python")
    with pytest.raises(RuntimeError, match="make bench-peers"):
        compare.attack_with_breaching(updates[0], knowledge[0], iterations=1)


@pytest.mark.slow
@pytest.mark.skipif(not compare.INTERPRETER.exists(), reason="needs `make bench-peers` before")
def test_breaching_is_given_the_same_model_and_cost(monkeypatch):
    monkeypatch.delenv("FEDLEAK_DATA", raising=False)
    # Other gradients or another cost than fedleak's would raise.
    figure = compare.peer_breaching_speedup(victims=1, iterations=3, batched=2)
    assert figure.value > 0
    assert figure.setting["peer"]["breaching"] == "0.1.2"

"""What an attack finds on a GPU is what it finds on the CPU; for machines that have one."""

from collections.abc import Iterator

import pytest
import torch

from fedleak.attacks import IGA, NRA
from tests.cases import MODELS, PAIRS, Pair, case_victim

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SEED = 3


@pytest.fixture(autouse=True)
def _own_settings_kept() -> Iterator[None]:
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_same_result_as_on_the_cpu(pair: Pair) -> None:
    victim = case_victim(
        pair.model, precode=pair.precode, batch=pair.attack.batch, dtype=torch.float64
    )
    attack = pair.attack.make()
    here, there, again = (
        attack([victim.update], victim.knowledge, seed=SEED, device=device)[0]
        for device in ("cpu", "cuda", "cuda")
    )
    assert there.inputs.device.type == "cpu"
    # A GPU may add up in another order each time.
    torch.testing.assert_close(again.inputs, there.inputs, rtol=1e-9, atol=1e-9)
    assert len(there.findings) == len(here.findings)
    if pair.precode and not pair.attack.kind.restores_noise and pair.attack.kind.iterative:
        return  # whoever ignores the noise draws it anew, and a GPU draws other numbers
    assert torch.equal(there.labels, here.labels)
    torch.testing.assert_close(there.inputs, here.inputs, rtol=1e-6, atol=1e-6)
    assert there.noise.keys() == here.noise.keys()
    for slot, noise in here.noise.items():
        torch.testing.assert_close(there.noise[slot], noise, rtol=1e-6, atol=1e-6)
    assert there.cost == pytest.approx(here.cost, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("way", ["trace", "inductor", "cuda_graphs"])
@pytest.mark.parametrize("model", [MODELS[0], MODELS[2]], ids=str)
def test_every_way_to_record_an_iteration(
    way: str, model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    victims = [case_victim(model, precode=True, client=client) for client in range(3)]
    facts = [type(v.knowledge)(**vars(v.knowledge) | {"model": victims[0].model}) for v in victims]
    plain, recorded = (
        NRA(iterations=30, compile=compiler, signed=False)(
            [victim.update for victim in victims], facts, device="cuda"
        )
        for compiler in ("off", way)
    )
    for one, other in zip(plain, recorded, strict=True):
        torch.testing.assert_close(other.inputs, one.inputs, rtol=1e-3, atol=1e-3)
        assert other.cost < 0.9 * other.costs[0][1]
        assert other.cost == pytest.approx(one.cost, rel=1e-2)


@pytest.mark.parametrize("way", ["off", "trace"])
def test_noise_that_is_ignored_is_drawn_anew_there(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedleak.attacks.matching.engine.TRACE_FROM", 1)
    victim = case_victim(MODELS[0], precode=True)
    attack = IGA(iterations=30, compile=way, signed=False, learning_rate=1e-9, box=False)
    (result,) = attack([victim.update], victim.knowledge, device="cuda")
    # The inputs hardly move, so another cost is other noise.
    assert result.costs[-1][1] < result.costs[0][1] - 1e-4


def test_single_precision_is_not_halved() -> None:
    """TF32 would end at a cost of a hundred thousandth, were it left on."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    victim = case_victim(MODELS[2], precode=True)
    attack = NRA(iterations=8, signed=False)
    here, there = (
        attack([victim.update], victim.knowledge, seed=SEED, device=device)[0]
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there.inputs, here.inputs, rtol=1e-4, atol=1e-5)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_the_gpus_random_state_is_left_as_it_was() -> None:
    victim = case_victim(MODELS[0], precode=True)
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    IGA(iterations=3)([victim.update], victim.knowledge, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)

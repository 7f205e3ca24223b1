"""Every module of fedleak has its tests in the file of its name, at the mirrored place."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT / "fedleak")
    for path in (ROOT / "fedleak").rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)
# Modules that hold only constants or a re-export, and plugins whose behaviour the generic suites
# test, which run over every attack, defence and model; their special cases have their own files.
EXCEPTIONS = {
    "attacks/base.py": "tests/attacks/test_attacks.py and test_attacks_raise.py",
    "attacks/dlg.py": "tests/attacks/test_attacks.py",
    "attacks/iga.py": "tests/attacks/test_attacks.py",
    "attacks/iga_partial.py": "tests/attacks/test_attacks.py",
    "attacks/nra.py": "tests/attacks/test_attacks.py",
    "defenses/base.py": "tests/defenses/test_defenses.py",
    "servers/base.py": "tests/servers/test_servers.py",
    "defenses/clipping.py": "tests/defenses/test_defenses.py",
    "defenses/censor.py": "tests/defenses/test_filters.py",
    "defenses/gradient_dropout.py": "tests/defenses/test_filters.py",
    "defenses/noise.py": "tests/defenses/test_defenses.py",
    "defenses/percentile.py": "tests/defenses/test_filters.py",
    "defenses/ppp.py": "tests/defenses/test_defenses.py",
    "defenses/pruning.py": "tests/defenses/test_defenses.py",
    "defenses/quantization.py": "tests/defenses/test_filters.py",
    "defenses/sign.py": "tests/defenses/test_defenses.py",
    "defenses/svt.py": "tests/defenses/test_filters.py",
    "defenses/top_k.py": "tests/defenses/test_filters.py",
    "attacks/matching/best_iterate.py": "tests/attacks/matching/test_engine.py",
    "attacks/matching/compile.py": "tests/attacks/matching/test_engine.py",
    "attacks/matching/objective.py": "tests/attacks/matching/test_engine.py",
    "attacks/matching/optimizers.py": "tests/attacks/matching/test_engine.py",
    "attacks/module_facts.py": "tests/attacks/closed_form",
}


def place_of(module: Path) -> Path:
    return ROOT / "tests" / module.parent / f"test_{module.name}"


@pytest.mark.parametrize(
    "module",
    [module for module in MODULES if module.as_posix() not in EXCEPTIONS],
    ids=str,
)
def test_a_module_has_a_test_file_of_its_name(module: Path) -> None:
    assert place_of(module).is_file()


def test_exceptions_are_needed() -> None:
    """A module that is gone, or that has its test file by now, is no exception any more."""
    known = {module.as_posix() for module in MODULES}
    for name in EXCEPTIONS:
        assert name in known
        assert not place_of(Path(name)).is_file(), f"{name} is no exception any more"

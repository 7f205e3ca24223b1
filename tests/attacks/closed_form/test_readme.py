"""The README of the package: its list of files, the findings it quotes, its thresholds."""

import re
from pathlib import Path

from fedleak.attacks.closed_form import (
    batch_unmixing,
    layer_inversion,
    layer_rules,
    least_squares,
    linear,
    min_variation,
    noise,
    pool_choices,
    pooled_trunk,
    reader,
    relu_masks,
    smooth_image,
)
from fedleak.attacks.closed_form.estimates import MAX_RELATIVE_ERROR

FOLDER = Path(reader.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def section(number: int) -> str:
    return README.split(f"## {number}. ")[1].split("\n## ")[0]


def test_every_module_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+\.py)` \|", section(11), flags=re.MULTILINE)
    assert sorted(listed) == sorted(p.name for p in FOLDER.glob("*.py") if p.stem != "__init__")


def test_findings_are_quoted_as_the_code_has_them() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    source = re.sub(r"\{[^{}]*\}", "…", source)
    rows = re.findall(r"^\| (`.*`) \|", section(9), flags=re.MULTILINE)
    quotes = [quote for row in rows for quote in re.findall("`([^`]*)`", row)]
    assert len(quotes) >= 15
    for quote in quotes:
        for part in re.split(r" ?… ?", quote):
            assert part.strip(",: ") in source, part


def test_thresholds_are_those_of_the_code() -> None:
    assert linear.MAX_ERROR == 0.01
    assert "its error is at most 0.01" in section(2)
    assert linear.REWEIGHTING_STEPS == 4
    assert "four more passes" in section(2)
    assert linear.ROUNDING == 1e-6
    assert "less than 1e-6 of" in section(2)
    assert noise.AGREEMENT == 1e-3
    assert r"\le 10^{-3} \lVert q \rVert" in section(3)
    assert layer_rules.LARGEST_PLANE == 1024
    assert "1024 pixels" in section(5)
    assert least_squares.PATIENCE == 40
    assert "40 iterations do not suffice" in section(5)
    assert layer_rules.LARGEST_WHOLE == 4096
    assert "at most 4096 unknowns" in section(5)
    assert least_squares.NOISE == 1e-7
    assert "relative 1e-7" in section(5)
    assert MAX_RELATIVE_ERROR == 0.05
    assert r"\mathrm{se} \le 0.05" in section(5)
    assert layer_inversion.MIN_CONSTRAINED == 0.98
    assert "at least 98 %" in section(5)
    assert (layer_rules.ZERO, layer_rules.INACTIVE_ERRORS) == (1e-8, 3)
    assert r"\max(10^{-8} M, 3 \sigma)" in section(6)
    assert (layer_rules.SMALL, layer_rules.ACTIVE_ERRORS, layer_rules.MARGIN) == (1e-6, 6, 1.5)
    assert r"\max(10^{-6} M, 6 \sigma, 1.5\,\tau \sigma)" in section(6)
    assert relu_masks.ENUMERATED == (8, 11, 14)
    assert "8 units (then 11, then 14" in section(6)
    assert (relu_masks.ROUNDING, relu_masks.CHANCE) == (3e-7, 0.01)
    assert r"3 \cdot 10^{-7}" in section(6)
    assert r"\frac{0.01}{2^{|U|}}" in section(6)
    assert (batch_unmixing.STARTS, batch_unmixing.TOLERANCE) == (8, 0.01)
    assert "up to eight random starts" in section(7)
    assert batch_unmixing.CONVERGED == 1e-5
    assert "at 1e-5 no further start" in section(7)
    assert (min_variation.OUTPUT, min_variation.EDGE) == (10, 0.01)
    assert "$$10\\," in section(8)
    assert "0.01^2" in section(8)
    for weights in (min_variation.CONVEX_WEIGHTS, min_variation.SMOOTH_WEIGHTS):
        assert r"$\lambda$ = " + ", ".join(f"{weight:g}" for weight in weights) in section(8)
    assert min_variation.NONSMOOTH_WEIGHTS[-1] == 0.003
    assert min_variation.SHARPNESS == (10, 30, 100, 300, 0)
    assert reader.FITS == 0.01
    assert "is at most 0.01" in section(8)


def test_stages_of_the_smooth_image_are_those_of_the_code() -> None:
    text = section(8)
    assert [sharpness for _, sharpness in smooth_image.STAGES] == [10, 10, 30, 100, 300, 1000]
    assert "10, 10, 30, 100, 300 and 1000" in text
    weights = [weight for weight, _ in smooth_image.STAGES]
    assert (weights[0], weights[-1]) == (1e-2, 1e-7)
    assert "from 0.01 to 1e-7" in text
    assert (smooth_image.SMOOTH, smooth_image.ROUGH, smooth_image.ROUGHER) == (2, 1.5, 1)
    assert smooth_image.MISFIT == 0.002
    assert smooth_image.WEIGHT == 10
    assert reader.SMOOTH_FITS == 0.03
    assert reader.NEGLIGIBLE == 1e-4


def test_numbers_of_the_choices_of_max_pooling_are_those_of_the_code() -> None:
    text = section(8)
    assert (smooth_image.COARSE_STAGES, smooth_image.COARSE_ITERATIONS) == (3, 60)
    assert "three stages of (12) of 60 iterations" in text
    assert (pool_choices.STAGES[0], pool_choices.STAGES[-1]) == (0.1, 1e-6)
    assert pooled_trunk.FOUND == 1e-4
    assert pool_choices.LARGEST == 4096

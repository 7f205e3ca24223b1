import pytest

from fedleak.errors import BadInput, require, unknown_name


def test_nearest_match_and_all_choices() -> None:
    error = unknown_name("attack", "igaa", ["nra", "iga"])
    assert isinstance(error, BadInput)
    assert str(error) == ("Unknown attack `igaa`: expected one of iga, nra. Did you mean `iga`?")


def test_no_match_no_guess() -> None:
    assert str(unknown_name("cost", "xyz", {"cosine": 1})) == (
        "Unknown cost `xyz`: expected one of cosine."
    )
    assert str(unknown_name("cost", "xyz", [])) == "Unknown cost `xyz`: expected one of (none)."


def test_require() -> None:
    require(True, "fine")
    with pytest.raises(BadInput, match=r"^not fine$"):
        require(False, "not fine")
    assert issubclass(BadInput, ValueError)

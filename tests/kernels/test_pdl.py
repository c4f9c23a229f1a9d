"""Tests when kernels are launched to overlap (programmatic dependent launch)."""

import pytest

from kernels import pdl


@pytest.mark.parametrize(
    ("choice", "interpreted", "expected"),
    [("", False, False), ("0", False, False), ("1", False, True), ("1", True, False)],
)
def test_only_a_gpu_with_the_setting_overlaps_launches(
    choice: str, interpreted: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LING_PDL", choice)
    monkeypatch.setattr(pdl.triton.knobs.runtime, "interpret", interpreted)
    assert pdl._asked() is expected


def test_an_unknown_choice_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LING_PDL", "on")
    with pytest.raises(ValueError, match="LING_PDL must be 0, 1 or unset, not 'on'"):
        pdl._asked()

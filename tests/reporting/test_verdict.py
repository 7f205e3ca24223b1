"""The results of attacks in sentences."""

import math
import re

from fedleak.reporting.verdict import find_outcomes, verdict
from tests.reporting.rows import PRECODE, some

NAN, INF = math.nan, math.inf


class TestVerdict:
    def sentences(self, *rows):
        return verdict(find_outcomes(rows))

    def test_no_rows(self):
        assert self.sentences() == []

    def test_several_attacks_on_the_undefended_model(self):
        rows = [*some(3, 4), *some(0, 4, attack="first-layer"), *some(1, 2, attack="idlg")]
        assert self.sentences(*rows) == [
            "IGA reconstructs 3 of 4 images of the undefended smlp, first-layer reconstructs 0 "
            "of 4 and iDLG reconstructs 1 of 2."
        ]

    def test_a_defence_without_comparison_is_not_said_to_stop(self):
        assert self.sentences(*some(0, 8, **PRECODE)) == [
            "IGA (0 of 8) fails on smlp with PRECODE in this setting."
        ]
        both = [*some(0, 8, **PRECODE), *some(8, 8, attack="nra", **PRECODE)]
        assert self.sentences(*both) == [
            "PRECODE on smlp does not stop NRA (8 of 8); IGA (0 of 8) fails against it."
        ]

    def test_a_defence_against_an_attack_that_never_worked(self):
        assert self.sentences(*some(0, 8), *some(0, 8, **PRECODE))[1] == (
            "IGA (0 of 8) fails on smlp with PRECODE in this setting."
        )

    def test_too_few_images(self):
        assert self.sentences(*some(2, 2), *some(0, 2, **PRECODE))[1] == (
            "IGA (0 of 2, too few to tell from chance) fails on smlp with PRECODE in this setting."
        )

    def test_nothing_follows_from_what_the_update_does_not_support(self):
        noisy = {"defense": "noise", "explained": 0.1}
        undefended, defended = self.sentences(*some(8, 8, explained=0.99), *some(0, 8, **noisy))
        assert undefended == "IGA reconstructs 8 of 8 images of the undefended smlp."
        assert defended == (
            "On smlp with noise, the reconstructions by IGA (8 of 8) are not supported by the "
            "updates: there the attack did not work, and nothing follows."
        )
        # The same failures, supported by the updates, are a result about the defence.
        supported = self.sentences(*some(8, 8), *some(0, 8, defense="noise", explained=0.9))
        assert supported[1] == "noise stops IGA (0 of 8) in this setting."

    def test_an_attack_that_did_not_work_on_the_undefended_model(self):
        found = self.sentences(*some(0, 4, explained=0.2), *some(4, 4, attack="nra"))
        assert found == [
            "IGA reconstructs 0 of 4 images of the undefended smlp and NRA reconstructs 4 of 4.",
            "On the undefended smlp, the reconstructions by IGA (4 of 4) are not supported by the "
            "updates: there the attack did not work, and nothing follows.",
        ]

    def test_a_partial_success_is_not_stopped(self):
        assert self.sentences(*some(8, 8), *some(1, 8, **PRECODE))[1] == (
            "PRECODE hinders IGA (1 of 8) in this setting."
        )
        assert self.sentences(*some(8, 8), *some(4, 8, **PRECODE))[1] == (
            "PRECODE does not stop IGA (4 of 8)."
        )

    def test_all_manners_at_once(self):
        undefended = [*some(8, 8), *some(8, 8, attack="dlg"), *some(8, 8, attack="idlg")]
        defended = [
            *some(0, 8, **PRECODE), *some(1, 8, attack="dlg", **PRECODE),
            *some(7, 8, attack="idlg", **PRECODE), *some(8, 8, attack="nra", **PRECODE),
            *some(0, 8, attack="analytic", **PRECODE),
        ]  # fmt: skip
        assert self.sentences(*undefended, *defended)[1] == (
            "PRECODE stops IGA (0 of 8) and hinders DLG (1 of 8) but not iDLG (7 of 8) or "
            "NRA (8 of 8) in this setting; Analytic (0 of 8) fails against it."
        )

    def test_defences(self):
        rows = [
            *some(8, 8),
            *some(0, 8, defense="noise"),
            *some(0, 8, attack="dlg", defense="noise"),
            *some(0, 8, defense="noise", **PRECODE),
        ]
        assert self.sentences(*rows)[1:] == [
            "noise stops IGA (0 of 8) in this setting; DLG (0 of 8) fails against it.",
            "PRECODE with noise stops IGA (0 of 8) in this setting.",
        ]

    def test_never_says_safe(self):
        for undefended in range(5):
            for defended in range(5):
                text = " ".join(self.sentences(*some(undefended, 4), *some(defended, 4, **PRECODE)))
                assert not re.search("safe|secure|protect|prevent", text)

    def test_images_too_small_for_ssim_are_not_scored(self):
        tiny = [row | {"ssim": NAN, "success": 0} for row in some(0, 3)]
        assert "Reconstructions without a score: 3 by IGA on smlp;" in self.sentences(*tiny)[0]

    def test_what_reconstructions_without_a_score_explain(self):
        missing = {"ssim": None, "mse": None, "success": None}
        rows = [row | missing | {"explained": 0.9 - 0.1 * n} for n, row in enumerate(some(0, 3))]
        (sentence,) = self.sentences(*rows)
        assert sentence.endswith("inspected. They explain 80 % of the updates on average.")

    def test_diverged_reconstructions_are_failures(self):
        diverged = [row | {"ssim": NAN, "mse": NAN, "success": 0} for row in some(0, 3)]
        assert "IGA reconstructs 0 of 3" in self.sentences(*diverged)[0]

"""Counts the evaluations of an L-BFGS search, and reports its progress."""

from fedleak.attacks.base import Progress, Report

REPORT_EVERY = 20


class EvaluationCounter:
    """Counts evaluations and reports the progress now and then.

    Args:
        report: told of the progress.
        total: number of iterations of the search; an iteration takes one evaluation, rarely more.
    """

    def __init__(self, report: Report, total: int) -> None:
        self.evaluations = 0
        self._report, self._total = report, total

    def count(self, value: float) -> None:
        """Count an evaluation.

        Args:
            value: the value that was found.
        """
        self.evaluations += 1
        if self.evaluations % REPORT_EVERY == 0:
            self._report(Progress(min(self.evaluations, self._total), self._total, value))

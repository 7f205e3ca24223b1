from fedleak.attacks.base import Progress
from fedleak.attacks.closed_form.evaluation_counter import REPORT_EVERY, EvaluationCounter


def test_progress_is_reported_now_and_then_and_never_exceeds_the_total() -> None:
    seen: list[Progress] = []
    counter = EvaluationCounter(seen.append, REPORT_EVERY + 5)
    for value in range(2 * REPORT_EVERY + 1):
        counter.count(float(value))
    assert counter.evaluations == 2 * REPORT_EVERY + 1
    assert [progress.iteration for progress in seen] == [REPORT_EVERY, REPORT_EVERY + 5]
    assert [progress.cost for progress in seen] == [REPORT_EVERY - 1, 2 * REPORT_EVERY - 1]

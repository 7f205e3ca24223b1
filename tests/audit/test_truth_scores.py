"""Guesses without the update and the measures beside them."""

import torch

from fedleak.audit.truth_scores import Samples, mean_guess, measure_of


def test_the_guess_is_the_mean_of_the_others_or_their_most_frequent_number() -> None:
    truth = Samples(torch.zeros(3, 2), None)
    others = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])]
    assert mean_guess(others, truth).tolist() == [[2.0, 3.0]] * 3
    assert mean_guess([], truth).tolist() == [[0.0, 0.0]] * 3
    numbers = Samples(torch.zeros(1, 2, dtype=torch.long), None)
    texts = [torch.tensor([[5, 1], [5, 2]]), torch.tensor([[4, 2]])]
    assert mean_guess(texts, numbers).tolist() == [[5, 2]]
    assert measure_of(numbers)[1] == 1.0
    assert measure_of(truth)[1] == 0.0

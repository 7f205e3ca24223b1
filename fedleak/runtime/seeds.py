"""Seeds of individual draws, derived from the run's seed."""

import numpy as np


def derive_seed(*numbers: int) -> int:
    """A seed that depends on all the numbers, the same on every machine.

    Args:
        numbers: the run's seed and the numbers that identify the draw, such as round and client;
            each at least 0.

    Returns:
        A number from 0 to 2**32 - 1.

    Raises:
        ValueError: if a number is negative.
    """
    # As a spawn key, trailing zeros count: the seeds of (5, 1) and (5, 1, 0) differ.
    sequence = np.random.SeedSequence(numbers[0], spawn_key=numbers[1:])
    return int(sequence.generate_state(1)[0])

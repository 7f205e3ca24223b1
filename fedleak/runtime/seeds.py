"""Seeds of single draws, derived from the run's one seed."""

import numpy as np


def derive_seed(*numbers: int) -> int:
    """A seed that depends on all the numbers, the same on every machine.

    Args:
        numbers: the run's seed and what tells the draw from others, such as round and client; each
            at least 0.

    Returns:
        A number from 0 to 2**32 - 1.
    """
    # Behind the first number as a spawn key, trailing zeros count: (5, 1) is not (5, 1, 0).
    sequence = np.random.SeedSequence(numbers[0], spawn_key=numbers[1:])
    return int(sequence.generate_state(1)[0])

"""A Flower app of a small convolutional network, whose rounds are timed."""

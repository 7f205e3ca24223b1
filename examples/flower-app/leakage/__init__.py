"""A Flower app whose server attacks the updates of its clients."""

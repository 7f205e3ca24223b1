"""Gradient matching: optimises dummy inputs until their gradient is the client's."""

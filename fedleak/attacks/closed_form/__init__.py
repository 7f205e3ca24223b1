"""Analytic gradient inversion: inputs, noise and layers in closed form."""

"""Analytic gradient inversion: layer inputs, noise and images in closed form; see README.md."""

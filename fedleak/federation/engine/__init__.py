"""Simulation of a federation; requires Ray and Lightning."""

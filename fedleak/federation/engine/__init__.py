"""The simulation of a federation: needs Ray and Lightning."""

"""Whole batches out of one gradient, sample by sample, each with a certificate."""

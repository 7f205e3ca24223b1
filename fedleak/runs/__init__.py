"""A run's output: its folder, results, scores, summary and diagnostics, and observers of a run."""

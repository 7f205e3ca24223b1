"""What a run leaves: its folder, results, scores and diagnostics, and who is told of them."""

"""Speed, as ratios measured in one run: against plain loops, and against the machine's limit."""

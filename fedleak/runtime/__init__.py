"""What a process needs to behave: signals, threads, seeds, silence of the engines."""

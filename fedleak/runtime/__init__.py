"""Process-level helpers: signals, threads, seeds, memory pages, logging, safe YAML."""

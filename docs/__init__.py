"""The documentation: its pages, and what Sphinx generates of the code when it builds them."""

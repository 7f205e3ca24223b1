"""The things that travel: what the server saw, what it knows, and what only the scorer sees."""

"""Speed and quality beside another library's, which runs in an environment of its own."""

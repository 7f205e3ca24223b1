"""The command line: parses arguments, calls the package, prints what came of it."""

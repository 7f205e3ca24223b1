"""``python -m fedleak``, and the console script."""

import sys
from typing import NoReturn

from fedleak.extras import MissingExtra, extras_explained


def main() -> NoReturn:
    """The command line; one sentence and exit code 2 if an extra that it needs is not installed."""
    try:
        with extras_explained():
            from fedleak.cli.main import main as command_line
    except MissingExtra as error:
        print(f"fedleak: {error}", file=sys.stderr)
        sys.exit(2)
    command_line()


if __name__ == "__main__":
    main()

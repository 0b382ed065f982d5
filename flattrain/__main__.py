"""`python -m flattrain`: the command line. See `flattrain.lab.cli`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line on sys.argv; the exit code."""
    from flattrain.lab.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

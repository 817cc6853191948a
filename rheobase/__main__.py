"""`python -m rheobase` and the console script."""

import sys


def main() -> int:
    from rheobase.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

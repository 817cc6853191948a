"""`python -m rheobase` and the console script."""

import signal
import sys


def main() -> int:
    from rheobase.cli import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is half-written is removed then too
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

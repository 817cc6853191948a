"""`python -m rheobase` and the console script."""

import os
import signal
import sys


def main() -> int:
    from rheobase.cli import run

    if "RANK" not in os.environ:  # under torchrun, a rank that waits for another that has failed would not hear it
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is half-written is removed then too
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

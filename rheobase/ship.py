"""`python -m rheobase.ship RUN NAME`: put a run's model, int8 and with its card, among those shipped.

The run must have been trained with [quantise] weights = 8 and evaluated (`rheobase eval RUN`).
"""

import argparse
import sys

from rheobase.models._sources import SHIPPED
from rheobase.models.training.run import Run
from rheobase.sharing import TARGET, card, share
from rheobase.spiking.errors import FormatError, RheobaseError


def ship(run: Run, name: str, *, folder=SHIPPED, **about):
    """Write folder/NAME, which holds the run's weights to the bit; `about` as of `card`."""
    if not name.replace("-", "").isalnum():
        raise FormatError("NAME", "letters, digits and hyphens", repr(name), "choose another")
    if "test" not in run.metrics():
        raise FormatError(run.folder, "a test figure", "none", f"run rheobase eval {run.folder}")
    return share(run, folder / name, card(run, **about), packed=True)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rheobase.ship", description=__doc__)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--license", default="unknown", dest="licence", help="of the weights, such as apache-2.0")
    parser.add_argument("--note", action="append", default=[], help="about the training, such as the machine; repeat")
    parser.add_argument("--text", help="what the training text is called (default data.text)")
    parser.add_argument("--target", default=TARGET, help=f"whose bill the card shows (default {TARGET})")
    args = parser.parse_args(argv)
    try:
        about = {"licence": args.licence, "notes": tuple(args.note), "target": args.target, "text": args.text}
        out = ship(Run.open(args.run), args.name, **about)
    except RheobaseError as error:
        print(f"rheobase: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {sum(p.stat().st_size for p in out.iterdir()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The figures of the models that come with the package, from their stored weights.

    OMP_NUM_THREADS=1 python benchmarks/shipped.py DATA [NAME ...]

DATA is a folder with enwik8, or with the first 95,000,000 bytes of it (`data.folder`). Bits are those of the 200,000
bytes before byte 95,000,000, which were used for nothing else, in streams as benchmarks/language_models.py has them;
operations are counted on the first 1,000 of them; the integers predict the first 10,000. Each model is exported to
SpiNNaker 2 and verified, and writes a text.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rheobase.backends import count, export, verify
from rheobase.models import shipped_names
from rheobase.models.training.datasets import locate
from rheobase.models.training.evaluate import evaluate
from rheobase.models.training.run import Run
from rheobase.models.training.sample import SampleConfig, sample
from rheobase.quickstart import calibration, integer_bits

HELD_OUT = slice(94_800_000, 95_000_000)
COUNTED, INTEGERS, BATCH, CONTEXT = 1_000, 10_000, 64, 128
PROMPT = b"The "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--sample", type=int, default=300, help="bytes of text to write")
    options = parser.parse_args()
    text = np.memmap(locate("enwik8", options.data)[0], np.uint8, "r")[HELD_OUT]
    for name in options.names or shipped_names():
        began = time.monotonic()
        run = Run.open(name)
        model = run.model()
        look = evaluate(model, text, batch=BATCH, context=CONTEXT)
        tally = count(model, torch.from_numpy(text[None, :COUNTED].astype(np.int64)))
        each = {kind: f"{getattr(tally, kind) / COUNTED:,.0f}" for kind in ("macs", "acs", "dense_macs")}
        size, bits = f"{model.n_parameters:,} parameters", f"{look.bits_per_byte:.4f} bits a byte"
        print(f"{name}: {size}, {bits} on {look.tokens:,} bytes")
        print(f"  {each['macs']} MACs and {each['acs']} ACs a byte, of {each['dense_macs']} dense", end="")
        print(f"; {100 * look.rate:.1f} % active")
        with tempfile.TemporaryDirectory() as folder:
            made = export(model, "spinnaker2", Path(folder) / "image", calibration=calibration(run))
            start = text[: INTEGERS + 1].astype(np.int64)
            floats = evaluate(model, text[: INTEGERS + 1], batch=1, context=1000)
            bits = integer_bits(made.path, start)
            report = verify(made.path)
            print(f"  in integers {bits:.4f}, in floats {floats.bits_per_byte:.4f} ({INTEGERS:,} bytes)")
            print(f"  image: {report.compared:,} integers compared, {report.mismatches:,} mismatches")
            print("".join(f"  {note}\n" for note in report.notes), end="")
        written = sample(model, [list(PROMPT)], options.sample, SampleConfig(temperature=0.7))
        print("  " + repr((PROMPT + bytes(written[0].tolist())).decode(errors="replace")))
        print(f"  {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

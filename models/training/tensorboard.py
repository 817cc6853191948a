"""Scalars of a training for TensorBoard: the records of log.jsonl, each number a curve."""

import contextlib
import json

from rheobase.models.training.run import Run
from rheobase.spiking.errors import UnsupportedError
from rheobase.spiking.files import read_bytes


def writer() -> type:
    """torch's SummaryWriter; raises UnsupportedError where the package tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        remedy = "pip install 'rheobase[tensorboard]', or set train.tensorboard = false"
        raise UnsupportedError("train.tensorboard", "the package tensorboard", "none", remedy) from None
    return SummaryWriter


def scalars(record: dict, measure: str) -> dict[str, float]:
    """Tag -> number of a record of log.jsonl; a list's numbers are by layer, and `valid` is named as what it measures.

    measure  the name of a step's loss, as `Run.measure` gives it
    """
    part = "valid" if "valid" in record else "train"
    figure = "accuracy" if measure == "cross_entropy" else measure
    found = {}
    for key, value in record.items():
        tag = f"{part}/{figure if key == 'valid' else key}"
        if isinstance(value, dict | list | tuple):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            found |= {f"{tag}/{name}": number for name, number in parts}
        elif key != "step":
            found[tag] = value
    return found


@contextlib.contextmanager
def board(run: Run, log_bytes: int):
    """Yield what takes each new record of the log; where train.tensorboard is off, None.

    The curves of the first `log_bytes` of log, what a resumed training keeps of it, are written anew.
    """
    if not run.config.train.tensorboard:
        yield None
        return
    folder, measure = run.folder / "tensorboard", run.measure
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with writer()(folder) as curves:

        def add(record: dict) -> None:
            for tag, number in scalars(record, measure).items():
                curves.add_scalar(tag, number, record["step"])

        def show(record: dict) -> None:
            add(record)
            curves.flush()

        whole = read_bytes(run.log_path, "a run's log")[:log_bytes].rpartition(b"\n")[0]
        for line in whole.splitlines():
            add(json.loads(line))
        curves.flush()
        yield show

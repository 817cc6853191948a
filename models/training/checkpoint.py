"""Checkpoints: whole or absent, with a digest that is checked before anything is read; and who writes in a run."""

import contextlib
import errno
import fcntl
import io
from pathlib import Path

import torch

from rheobase.models._pretrained import read_torch_file
from rheobase.spiking.errors import FormatError
from rheobase.spiking.files import open_atomic, read_bytes, sha256

MAGIC = b"rheobase-checkpoint/1 "
KEEP = 2
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""what a file system that knows no locks says"""


def save_checkpoint(folder: Path, step: int, state: dict) -> Path:
    """Write `step-N.ckpt` atomically; the newest two are kept."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path, payload = folder / f"step-{step:08d}.ckpt", buffer.getbuffer()
    with open_atomic(path) as file:
        file.write(MAGIC + sha256(payload).encode() + b"\n")
        file.write(payload)
    for old in sorted(folder.glob("step-*.ckpt"))[:-KEEP]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint; raises FormatError where it is foreign, truncated or changed by a single bit."""
    data = read_bytes(path, "a checkpoint")
    head, newline, payload = data.partition(b"\n")
    if not head.startswith(MAGIC) or not newline:
        raise FormatError(path, "a rheobase checkpoint", "another file", "delete it to go on from the one before")
    if head[len(MAGIC) :] != sha256(payload).encode():
        raise FormatError(path, "the sha256 it was written with", "another", "delete it to go on from the one before")
    return read_torch_file(io.BytesIO(payload), path)


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint, or None."""
    found = sorted(folder.glob("step-*.ckpt"))
    return found[-1] if found else None


@contextlib.contextmanager
def alone(folder: Path, log_path: Path):
    """Inside, no other process trains the run of a folder, whose log is locked; raises FormatError where one does.

    The lock goes with the process, however that ends. Where the file system knows no locks, there is none. What a
    killed process left half-written is removed.
    """
    if log_path.is_symlink() or log_path.exists() and not log_path.is_file():
        raise FormatError(
            log_path, "a plain file, which is written to", "a link or a pipe", "put the file itself there"
        )
    with open(log_path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "wait for its end, or choose another --out"
            raise FormatError(folder, "a run that no process trains", "one that is trained now", remedy) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        for place in (folder, folder / "model", folder / "checkpoints"):
            for partial in place.glob(".*.partial"):
                if partial.is_file():  # a folder is an export that goes on
                    partial.unlink()
        yield

"""Public data sets by name: where they come from, what they must hash to, and how they are cut.

A set is looked for in a local folder first (`data.folder`, or $RHEOBASE_DATA, or the cache); only then is it fetched.
A folder holds `NAME/FILE` or `NAME/FILE.xz`.
"""

import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rheobase.models.training.cache import cache_folder, file_digest, unpacked
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import open_atomic


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A public data set.

    address   of the file, or of a .zip archive that holds the files
    licence   of the text
    files     one (the whole text), two (training and validation) or three (and test)
    sums      file name -> "algorithm:hash" of its content; a file without one is taken as it is, and every run
              records the hash of what it was trained on and refuses another afterwards
    archive   the same of the archive, where its content has no sums
    stand_in  a file that holds the beginning of another: name -> its name
    splits    bytes of the three parts, where the set has one file and a canonical split
    """

    address: str
    licence: str
    files: tuple[str, ...]
    sums: Mapping[str, str] = field(default_factory=dict)
    archive: str | None = None
    stand_in: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[int, ...] = ()


_WIKITEXT = "https://wikitext.smerity.com"
DATA_SETS = {
    "enwik8": DataSet(
        address="http://mattmahoney.net/dc/enwik8.zip",
        licence="Wikipedia, GFDL and CC BY-SA 3.0",
        files=("enwik8",),
        sums={
            "enwik8": "md5:a1fa5ffddb56f4953e226637dabbb36a",
            "enwik8.first95000000": "sha256:2efcfa27648f0ee706195601997c0bafe2edbae80dd6369061cc0dd237f7f3cd",
        },
        stand_in={"enwik8": "enwik8.first95000000"},
        splits=(90_000_000, 5_000_000, 5_000_000),
    ),
    "wikitext-2": DataSet(
        address=f"{_WIKITEXT}/wikitext-2-v1.zip",
        licence="Wikipedia, CC BY-SA 3.0",
        files=("wiki.train.tokens", "wiki.valid.tokens"),
        sums={
            "wiki.train.tokens": "sha256:9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "wiki.valid.tokens": "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        },
    ),
    "wikitext-103": DataSet(
        address=f"{_WIKITEXT}/wikitext-103-v1.zip",
        licence="Wikipedia, CC BY-SA 3.0",
        files=("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        archive="md5:9ddaacaf6af0710eda8c456decff7832",
    ),
    "tinyshakespeare": DataSet(
        address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        licence="public domain",
        files=("input.txt",),
        sums={"input.txt": "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
    ),
}


def locate(name: str, folder: str | None = None) -> list[Path]:
    """The unpacked files of a data set, their sums checked.

    folder  where to look, and nowhere else; if None, $RHEOBASE_DATA, then the cache, then the public address
    raises  FormatError: not there, not to be had, damaged, or of another sum
    """
    data, cache = DATA_SETS[name], cache_folder() / "data"
    local = folder or os.environ.get("RHEOBASE_DATA")
    found = _find(Path(local) / name, data) if local else None
    if not found and folder:
        wanted = " and ".join(f"{name}/{file}[.xz]" for file in data.files)
        remedy = f"put there what {data.address} holds, or leave data.folder out to have it fetched"
        raise FormatError(folder, wanted, "none", remedy)
    found = found or _find(cache / name, data)
    if not found:
        _fetch(name, data, cache)
        found = _find(cache / name, data)
    files = [unpacked(path) for path in found]
    for path, file in zip(found, files, strict=True):
        check_sum(path, file, data.sums.get(path.name.removesuffix(".xz")))
    return files


def check_sum(where: Path, path: Path, wanted: str | None) -> None:
    """Raise FormatError unless a file hashes to "algorithm:hash"; None takes any."""
    if wanted is None:
        return
    algorithm, _, digest = wanted.partition(":")
    got = file_digest(path, algorithm)
    if got != digest:
        raise FormatError(where, f"{algorithm} {digest[:12]}…", f"{got[:12]}…", "delete it and fetch it anew")


def _find(folder: Path, data: DataSet) -> list[Path] | None:
    found = []
    for file in data.files:
        names = [name for name in (file, data.stand_in.get(file)) if name]
        paths = [folder / f"{name}{end}" for name in names for end in ("", ".xz")]
        found += [path for path in paths if path.is_file()][:1]
    return found if len(found) == len(data.files) else None


def _fetch(name: str, data: DataSet, cache: Path) -> None:
    """Download a set and put its files, whole or not at all, into the cache."""
    try:
        import pooch
    except ImportError:
        remedy = f"pip install 'rheobase[data]', or fetch {data.address} and set data.folder"
        raise ConfigError(f"data set {name}", "the pooch package to download with", "none", remedy) from None
    pooch.get_logger().setLevel("WARNING")
    downloads = cache / "downloads"
    try:
        bar = sys.stderr.isatty()
        packed = Path(pooch.retrieve(data.address, None, Path(data.address).name, downloads, progressbar=bar))
    except (OSError, ValueError) as error:
        files = ", ".join(str(cache / name / file) for file in data.files)
        remedy = f"fetch {data.address} elsewhere and put its files at {files}"
        raise FormatError(f"data set {name}", "a download", f"{type(error).__name__}", remedy) from None
    try:
        check_sum(packed, packed, data.archive)
        for file in data.files:
            with _open(packed, file) as source, open_atomic(cache / name / file) as target:
                shutil.copyfileobj(source, target)
                target.flush()
                check_sum(packed, Path(target.name), data.sums.get(file))
    finally:
        packed.unlink(missing_ok=True)


def _open(packed: Path, file: str):
    if packed.suffix != ".zip":
        return open(packed, "rb")
    try:
        archive = zipfile.ZipFile(packed)
        return archive.open(next(n for n in archive.namelist() if Path(n).name == file))
    except (zipfile.BadZipFile, StopIteration):
        raise FormatError(packed, f"a .zip archive with {file}", "another file", "try again later") from None

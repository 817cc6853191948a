"""Encodes the units of texts in other processes, and gives what they found in the units' order.

Unit i leaves its ids in the file `i` of a spool folder and the places where its documents start in `i.starts`; a file
`stop` there ends the work at the next block.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rheobase.models.training.documents import Block, Unit, Wrong, blocks
from rheobase.models.training.tokenizers import EOS, Bytes, Pieces, Tokenizer, Words, from_json, words_of
from rheobase.spiking.errors import FormatError, RheobaseError

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""names under which the tokenizers library's files have a token that ends a text; the first that is there is taken"""
MOST_WORDS = 1 << 20
"""different words of which a vocabulary is made"""
_MANY = 1 << 16
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all units have in common; `size` is that of a block in bytes, `tokenizer` its JSON."""

    tokenizer: str
    field: str
    encoding: str
    size: int
    spool: Path


@dataclass(frozen=True)
class Encoded:
    """What a unit became: (tokens, bytes of text) of each block, its documents and its lines (or rows)."""

    blocks: list[tuple[int, int]]
    documents: int
    lines: int


@dataclass(frozen=True)
class Vocabulary:
    """The words of a unit in the order of first appearance, and its lines (or rows)."""

    words: list[bytes]
    lines: int


def separator_of(tokenizer: Tokenizer) -> int | None:
    """The id between documents: byte 0, the words' <eos>, one of `SEPARATORS`, or None."""
    if isinstance(tokenizer, Bytes):
        return 0
    if isinstance(tokenizer, Words):
        return tokenizer.words.index(EOS)
    if isinstance(tokenizer, Pieces):
        return next((found for name in SEPARATORS if (found := tokenizer.id_of(name)) is not None), None)
    return None


def encode(number: int, unit: Unit) -> Encoded:
    """Encode a unit into the spool, a separator before each of its documents. Raises Wrong."""
    setting, tokenizer = _worker.setting, _worker.tokenizer
    mark = np.array([] if _worker.separator is None else [_worker.separator], tokenizer.dtype)
    ids, starts, n_tokens, n_bytes, before, done = [], [], 0, 0, 0, []

    def write():
        file.write(np.concatenate(ids).astype(tokenizer.dtype.newbyteorder("<"), copy=False))
        places.write(np.array(starts, "<u8"))
        done.append((n_tokens, n_bytes))

    with open(setting.spool / f"{number}", "wb") as file, open(setting.spool / f"{number}.starts", "wb") as places:
        documents = 0
        for block in _blocks(unit):
            if block.starts:
                ids.append(mark)
                n_tokens += len(mark)
                starts.append(before + n_tokens)
                documents += 1
            try:
                ids.append(tokenizer.encode(block.text))
            except RheobaseError as error:
                raise Wrong(block.line, error.expected, error.got, error.remedy) from None
            n_tokens, n_bytes = n_tokens + len(ids[-1]), n_bytes + len(block.text)
            if n_bytes >= setting.size or len(ids) > _MANY:
                write()
                ids, starts, n_tokens, n_bytes, before = [], [], 0, 0, before + n_tokens
        write()
    return Encoded(done, documents, block.line - 1)


def vocabulary(number: int, unit: Unit) -> Vocabulary:
    """The vocabulary of a unit. Raises Wrong."""
    words: dict[bytes, None] = {}
    for block in _blocks(unit):
        words.update(dict.fromkeys(words_of(block.text)))
        if len(words) > MOST_WORDS:
            error = too_many(unit.path)
            raise Wrong(block.line, error.expected, error.got, error.remedy)
    return Vocabulary(list(words), block.line - 1)


def too_many(where: object) -> FormatError:
    """The error of a vocabulary that grows without bound."""
    wanted, remedy = f"at most {MOST_WORDS:,} different words", "name the JSON file of another tokenizer"
    return FormatError(where, wanted, "more", remedy)


def each(work: Callable[[int, Unit], T], units: list[Unit], setting: Setting, jobs: int) -> Iterator[T]:
    """What `work` gives for each unit, in their order, by `jobs` processes, or a thread if it is one.

    raises  FormatError: the first line of the sources that is wrong, by its file and number
    """
    from tqdm import tqdm

    stop, todo, lines = setting.spool / "stop", enumerate(units), 0
    options = {"unit": "B", "unit_scale": True, "delay": 2, "disable": None, "leave": False}
    pool = _pool(min(jobs, len(units)), setting)
    try:
        coming = collections.deque(pool.submit(work, *next_unit) for next_unit in itertools.islice(todo, 2 * jobs))
        with tqdm(total=sum(unit.high - unit.low for unit in units), desc=work.__name__, **options) as bar:
            for unit in units:
                lines = 0 if unit.number == 0 else lines
                while not concurrent.futures.wait([coming[0]], timeout=1).done:
                    bar.set_postfix_str(f"{_size(setting.spool):,} bytes of ids under way")
                try:
                    found = coming.popleft().result()
                except Wrong as wrong:
                    line, *rest = wrong.args
                    place = "" if line is None else f" {'row' if unit.kind == 'table' else 'line'} {lines + line}"
                    raise FormatError(f"{unit.path}{place}", *rest) from None
                except concurrent.futures.BrokenExecutor:
                    got, remedy = "one that was killed", "lower --jobs if memory is short"
                    raise RheobaseError(unit.path, "a process that reads it", got, remedy) from None
                coming.extend(pool.submit(work, *next_unit) for next_unit in itertools.islice(todo, 1))
                lines += found.lines
                yield found
                bar.update(unit.high - unit.low)
    except BaseException:
        stop.touch()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _size(spool: Path) -> int:
    return sum(file.stat().st_size for file in spool.iterdir())


def _pool(jobs: int, setting: Setting) -> concurrent.futures.Executor:
    if jobs == 1:
        return concurrent.futures.ThreadPoolExecutor(1, "prepare", _begin, (setting,))
    context = multiprocessing.get_context("forkserver")  # a fork of this process might hold the locks of its threads
    context.set_forkserver_preload([__name__])
    return concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (setting,))


_worker = threading.local()
"""what this process or thread works with: `setting`, `tokenizer`, `separator`"""


def _begin(setting: Setting) -> None:
    _worker.setting, _worker.tokenizer = setting, from_json(setting.tokenizer)
    _worker.separator = separator_of(_worker.tokenizer)
    parent = multiprocessing.parent_process()
    if parent and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and says stop
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent) -> None:
    """End this process when its parent has gone, however that went."""
    multiprocessing.connection.wait([parent])
    os._exit(1)


def _blocks(unit: Unit) -> Iterator[Block]:
    setting = _worker.setting
    for block in blocks(unit, setting.field, setting.encoding, _worker.tokenizer, setting.size):
        if (setting.spool / "stop").exists():
            raise Wrong(None, "work", "a stop", "none")
        yield block

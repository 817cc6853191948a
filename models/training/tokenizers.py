"""Text to token ids and back: bytes, characters, words, or whatever a `tokenizers` JSON file says.

A tokenizer has `encode(text) -> ids`, `decode(ids) -> bytes`, `vocabulary`, `dtype` (of the ids, the smallest unsigned
one that fits), `unit` (what one token is called) and `to_json`; `boundary(text, at)` is the first place from `at` on
where a text may be parted, and `seam(text, at)` the first where that leaves its tokens as they are.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import read_bytes, sha256
from rheobase.spiking.registry import nearest

FORMAT = "rheobase-tokenizer/1"
EOS, UNK = b"<eos>", b"<unk>"
PIECE = 1 << 22
AROUND, TRIES = 64, 32
"""bytes on either side of a place that are encoded to see whether it is a seam, and places that are so tried"""
_CODE_POINTS = 0x110000
_SPACE = re.compile(rb"\s")
_WORD_START = re.compile(rb"(?<=\S) (?=[A-Za-z\xc3-\xcb\xce-\xdf])")
"""a space alone before a letter of UTF-8 of one or two bytes; no white space and no combining mark begins with these"""


class Tokenizer:
    """What the tokenizers share."""

    unit = "token"
    utf8 = False
    """whether it reads UTF-8 alone"""
    vocabulary: int

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.vocabulary - 1)

    @property
    def measure(self) -> str:
        """The field of an evaluation that is this tokenizer's own unit: bits_per_byte or bits_per_token."""
        return "bits_per_byte" if self.unit == "byte" else "bits_per_token"

    @property
    def digest(self) -> str:
        """The SHA-256 of `to_json`: equal where the ids are equal."""
        return sha256(self.to_json().encode())

    def encode(self, text: bytes, start: int = 0, where: str = "text") -> np.ndarray:
        """Ids of a text, whose first token is, for messages, number `start` of what `where` says."""
        raise NotImplementedError(f"{type(self).__name__} does not encode")

    def decode(self, ids) -> bytes:
        """Text of some ids."""
        raise NotImplementedError(f"{type(self).__name__} does not decode")

    @staticmethod
    def boundary(text, at: int) -> int:
        """The first place from `at` on where the text may be parted."""
        raise NotImplementedError("a tokenizer says where a text may be cut")

    def seam(self, text, at: int) -> int:
        """The first place from `at` on where the text may be cut without changing its tokens, or its end."""
        return self.boundary(text, at)

    def to_json(self) -> str:
        """What `from_json` reads."""
        raise NotImplementedError(f"{type(self).__name__} is not saved")

    def check(self, ids) -> np.ndarray:
        """The ids as an array; raises ConfigError for one beyond the vocabulary."""
        ids = np.asarray(ids, np.int64)
        if ids.size and not (0 <= ids.min() and ids.max() < self.vocabulary):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ConfigError("tokenizer", f"ids from 0 to {self.vocabulary - 1}", str(wrong), "use the run's own")
        return ids


class Bytes(Tokenizer):
    """Every byte is a token; nothing is unknown, and the ids of a text are its bytes themselves."""

    unit, vocabulary = "byte", 256

    @classmethod
    def from_text(cls, pieces: Iterable[bytes]) -> "Bytes":
        """The one tokenizer of bytes, whatever the text."""
        return cls()

    def encode(self, text, start=0, where="text"):
        return np.frombuffer(text, np.uint8)

    def decode(self, ids):
        return self.check(ids).astype(np.uint8).tobytes()

    @staticmethod
    def boundary(text, at):
        return at

    def to_json(self):
        return json.dumps({"format": FORMAT, "kind": "bytes"})


class Characters(Tokenizer):
    """Every character of UTF-8 text is a token; ids follow the order of code points.

    characters  the vocabulary, without repetition
    unknown     the character, one of them, that stands for one that is not; "": a character that is not is refused
    """

    unit, utf8 = "character", True

    def __init__(self, characters: str, unknown: str = ""):
        self.characters, self.unknown = "".join(sorted(set(characters))), unknown
        self.vocabulary = len(self.characters)
        if not self.characters:
            raise ConfigError("characters", "at least one", "none", "give a text")
        if unknown and (len(unknown) > 1 or unknown not in self.characters):
            raise ConfigError("data.unknown", "one character of the vocabulary", repr(unknown), 'such as "?"')
        self._points = np.array([ord(c) for c in self.characters])
        self._ids = np.full(_CODE_POINTS, -1, np.int32)
        self._ids[self._points] = np.arange(self.vocabulary)
        self._place = int(self._ids[ord(unknown)]) if unknown else -1

    @classmethod
    def from_text(cls, pieces: Iterable[bytes], unknown: str = "") -> "Characters":
        """The characters of a text, given in pieces that end between characters."""
        seen = np.zeros(_CODE_POINTS, bool)
        for piece in pieces:
            seen[_code_points(piece)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))), unknown)

    def encode(self, text, start=0, where="text"):
        points = _code_points(text)
        ids = self._ids[points]
        missing = np.flatnonzero(ids < 0)
        if len(missing) and not self.unknown:
            first = chr(points[missing[0]])
            raise FormatError(
                f"character {start + missing[0]} of the {where}",
                f"one of the {self.vocabulary} characters of the vocabulary",
                f"{first!r} (U+{ord(first):04X})",
                "train on a text that holds it, or set data.unknown to a character that stands for it",
            )
        ids[missing] = self._place
        return ids.astype(self.dtype)

    def decode(self, ids):
        return self._points[self.check(ids)].astype("<u4").tobytes().decode("utf-32-le").encode()

    @staticmethod
    def boundary(text, at):
        while at < len(text) and text[at] & 0xC0 == 0x80:
            at += 1
        return at

    def to_json(self):
        table = {"format": FORMAT, "kind": "characters", "characters": self.characters, "unknown": self.unknown}
        return json.dumps(table, ensure_ascii=False)


class Words(Tokenizer):
    """Words between ASCII white space, `<eos>` at the end of each line, `<unk>` for a word that is not known.

    Ids follow the order of first appearance. Text comes back with one space between words.
    Source: the convention of WikiText (Merity et al., ICLR 2017): wiki.train.tokens of WikiText-2 has 33,278.
    """

    unit = "word"

    def __init__(self, words: Iterable[bytes]):
        self.words = list(dict.fromkeys([*words, EOS, UNK]))
        self.vocabulary = len(self.words)
        self._ids = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def from_text(cls, pieces: Iterable[bytes]) -> "Words":
        """The words of a text, given in pieces that end with white space."""
        words: dict[bytes, None] = {}
        for piece in pieces:
            words.update(dict.fromkeys(words_of(piece)))
        return cls(words)

    def encode(self, text, start=0, where="text"):
        unknown = self._ids[UNK]
        return np.array([self._ids.get(word, unknown) for word in words_of(text)], self.dtype)

    def decode(self, ids):
        words = [self.words[i] for i in self.check(ids)]
        return b"".join(b"\n" if word == EOS else word + b" " for word in words)

    @staticmethod
    def boundary(text, at):
        found = _SPACE.search(text, at - 1)
        return found.end() if found else len(text)

    def to_json(self):
        words = [word.decode(errors="surrogateescape") for word in self.words]
        return json.dumps({"format": FORMAT, "kind": "words", "words": words})


class Pieces(Tokenizer):
    """The tokens of a `tokenizers` JSON file (Hugging Face's format), such as a byte-pair encoding; UTF-8 text.

    Special tokens are neither added nor left out. A run of ids that ends inside a character decodes to U+FFFD there.

    raises  FormatError: JSON that the library cannot read;  ConfigError: the library is not installed
    """

    utf8 = True

    def __init__(self, text: str, where: object = "tokenizer"):
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            raise ConfigError(where, "the tokenizers package", "none", "pip install 'rheobase[bpe]'") from None
        try:
            self._library = Library.from_str(text)
        except BaseException as error:  # a panic of Rust's, as of merges that do not fit, is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise _foreign(where, str(error).splitlines()[0]) from None
        self._library.no_padding()
        self._library.no_truncation()
        self._text, model = text, self._library.model
        self.vocabulary = 1 + max(self._library.get_vocab().values(), default=0)
        self._drops = type(model).__name__ == "BPE" and not (model.unk_token or model.byte_fallback)
        self._known: set[str] = set()

    def encode(self, text, start=0, where="text"):
        lines = _utf8(text)
        if self._drops and (new := set(lines) - self._known):
            for character in sorted(new):
                self._require(character, where)
            self._known |= new
        return np.array(self._library.encode(lines, add_special_tokens=False).ids, self.dtype)

    def _require(self, character: str, where: str) -> None:
        """Refuse a character that the library would leave out, as a byte-pair encoding does that has no unk_token."""
        normalizer, parts = self._library.normalizer, self._library.pre_tokenizer
        text = normalizer.normalize_str(character) if normalizer else character
        wanted = "".join(part for part, _ in parts.pre_tokenize_str(text)) if parts else text
        if len("".join(self._library.encode(character, add_special_tokens=False).tokens)) < len(wanted):
            got, remedy = f"{character!r} (U+{ord(character):04X})", "name one with an unk_token, or one of bytes"
            raise FormatError(where, "characters that the tokenizer knows", got, remedy)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, or None."""
        return self._library.token_to_id(token)

    def decode(self, ids):
        return self._library.decode(self.check(ids).tolist(), skip_special_tokens=False).encode()

    @staticmethod
    def boundary(text, at):
        """In front of a single space and a letter, where GPT's pre-tokenizers part words; the end if there is none."""
        found = _WORD_START.search(text, at)
        return found.start() if found else len(text)

    def seam(self, text, at):
        """The first of some boundaries on whose two sides the tokens are those of both together; else the end."""

        def ids(part: str) -> list[int]:
            return self._library.encode(part, add_special_tokens=False).ids

        for _ in range(TRIES):
            at = self.boundary(text, at)
            sides = text[max(at - AROUND, 0) : at], text[at : at + AROUND]
            before, after = (bytes(side).decode(errors="ignore") for side in sides)
            if ids(before + after) == ids(before) + ids(after):
                return at
            at += 1
        return len(text)

    def to_json(self):
        return self._text


BUILT = {"bytes": Bytes, "characters": Characters, "words": Words}


def from_json(text: str, where: object = "tokenizer") -> Tokenizer:
    """The tokenizer that `to_json` wrote, or that a `tokenizers` JSON file describes.

    raises  FormatError: other JSON, or none
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise _foreign(where, "no JSON") from None
    if isinstance(table, dict) and table.get("format") != FORMAT and isinstance(table.get("model"), dict):
        return Pieces(text, where)
    try:
        if table["format"] != FORMAT:
            raise _foreign(where, repr(table["format"]))
        if table["kind"] == "characters":
            table["characters"].encode()  # half a surrogate is no character
            return Characters(table["characters"], table["unknown"])
        if table["kind"] == "words":
            return Words([word.encode(errors="surrogateescape") for word in table["words"]])
        return BUILT[table["kind"]]()
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        raise _foreign(where, "other JSON") from None


def read_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer from its JSON file; raises FormatError where it is missing or foreign."""
    try:
        return from_json(read_bytes(path, "a tokenizer's JSON file").decode(), path)
    except UnicodeDecodeError:
        raise _foreign(path, "no UTF-8") from None


def named_tokenizer(name: str) -> Tokenizer | type[Tokenizer]:
    """The tokenizer of a JSON file, or the class "bytes", "characters" or "words", whose `from_text` makes one.

    raises  ConfigError: another name, with the nearest match
    """
    if name.endswith(".json"):
        return read_tokenizer(name)
    if name not in BUILT:
        raise ConfigError("data.tokenizer", "a tokenizer or a .json file", repr(name), nearest(name, BUILT))
    return BUILT[name]


def pieces(boundary, text, doing: str) -> Iterator[bytes]:
    """A long text in pieces of some megabytes, cut at a tokenizer's boundaries; shows progress of `doing` something."""
    from tqdm import tqdm

    start = 0
    options = {"unit": "B", "unit_scale": True, "delay": 2, "disable": None, "leave": False}
    with tqdm(total=len(text), desc=doing, **options) as bar:
        while start < len(text):
            end = boundary(text, min(start + PIECE, len(text)))
            yield bytes(text[start:end])
            bar.update(end - start)
            start = end


def _utf8(text: bytes) -> str:
    try:
        return bytes(text).decode()
    except UnicodeDecodeError as error:
        wrong = f"the byte 0x{error.object[error.start]:02x} at byte {error.start}"
        raise FormatError("text", "UTF-8", wrong, 'give UTF-8 or set data.tokenizer = "bytes"') from None


def _code_points(text: bytes) -> np.ndarray:
    return np.frombuffer(_utf8(text).encode("utf-32-le"), "<u4")


def words_of(text: bytes) -> Iterator[bytes]:
    """The words of a text, and <eos> for each end of a line."""
    lines = bytes(text).split(b"\n")
    last = lines.pop()
    for line in lines:
        yield from line.split()
        yield EOS
    yield from last.split()


def _foreign(where: object, got: str) -> FormatError:
    return FormatError(where, "a tokenizer in JSON (ours or the tokenizers library's)", got, "give another file")

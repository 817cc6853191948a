"""The text that benchmarks/understanding.py trains its language model on, and the sentences in the same spelling.

From DATA (enwik8, wikitext-2 and sentences, as their README says) into a folder: `text`, `valid_text`, a sentence a
line, words between blanks; and the labelled files, `sst2.train` and so on. No sentence of a dev part is in the text,
nor one that shares much with one.
"""

import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rheobase.models.training.sentence_sets import SETS, SentencesConfig, read_files
from rheobase.models.training.sentences import Sentences

VOCABULARY = 10_000
"""words; the others are <unk>"""
RARE = 0.2
"""most unknown words in a sentence of Wikipedia"""
GENERAL = 8_000_000
"""words of Wikipedia, of the sentences most like those to be classified"""
REPEATS = 4
"""how often the sentences without labels stand in the text, so that they are seen as often as they weigh"""
VALID = 500
"""sentences held out of the text, which choose the language model's step"""
GRAM, SHARED = 4, 0.3
"""two sentences are near if they share this part of the words' 4-grams of the one that has fewer"""
WORD = re.compile(r"n't\b|'[a-z]+|[a-z]+(?=n't\b)|[a-z0-9]+(?:[.,][0-9]+)*|[^\sa-z0-9]")
UNK = "<unk>"


def words(text: str) -> list[str]:
    """A text's words and marks in lower case, spelt as the Stanford sentiment files spell them."""
    text = text.lower().replace("-lrb-", "(").replace("-rrb-", ")").replace("`", "'").replace("''", '"')
    return WORD.findall(text)


def letters(row: list[str]) -> str:
    """The letters and digits alone, which no difference of spelling changes."""
    return "".join(c for word in row for c in word if c.isalnum())


def grams(row: list[str]) -> set[tuple[str, ...]]:
    """Runs of `GRAM` words, marks left out."""
    plain = [word for word in row if word.isalnum()]
    return {tuple(plain[i : i + GRAM]) for i in range(len(plain) - GRAM + 1)}


class Judged:
    """The sentences that accuracies are reported on, to be kept out of any text."""

    def __init__(self, rows: Iterable[list[str]]):
        rows = list(rows)
        self.letters = {letters(row) for row in rows}
        self.grams = [grams(row) for row in rows]
        self.places = defaultdict(set)
        for i, found in enumerate(self.grams):
            for gram in found:
                self.places[gram].add(i)

    def holds(self, row: list[str]) -> bool:
        """Whether a sentence is one of them, or near one."""
        own = grams(row)
        shared = Counter(i for gram in own for i in self.places.get(gram, ()))
        near = any(n >= SHARED * min(len(own), len(self.grams[i])) for i, n in shared.items())
        return near or letters(row) in self.letters


def wikipedia(data: Path) -> Iterator[list[str]]:
    """Sentences of wikitext-2's training part and of enwik8's, without its mark-up."""
    for line in _open(data / "wikitext-2" / "wiki.train.tokens.xz").split("\n"):
        if line.strip() and not line.strip().startswith("="):
            plain = re.sub(r" @(.)@ ", r"\1", line).replace(UNK, "\0")
            yield [UNK if word == "\0" else word for word in words(plain)]
    packed = next((data / "enwik8").glob("enwik8*.xz"))
    text = lzma.open(packed).read(90_000_000).decode(errors="ignore")
    for pattern, by in (
        (r"<title>.*?</title>|<[^<>\n]*>", ""),
        (r"&lt;ref.*?&lt;/ref&gt;|&lt;.*?&gt;", ""),
        (r"\{\{[^{}]*\}\}", ""),
        (r"\[\[[^\[\]|]*:[^\[\]]*\]\]", ""),
        (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),
        (r"'''?|\[?https?:\S+", ""),
    ):
        text = re.sub(pattern, by, text)
    for line in text.replace("&quot;", '"').replace("&amp;", "&").split("\n"):
        if len(line) >= 80 and line[0] not in "|{!=*#:; " and "|" not in line:
            for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z\"])", line):
                row = words(sentence)
                if 5 <= len(row) <= 80 and row[-1] in '.!?"':
                    yield row


def _open(path: Path) -> str:
    return lzma.open(path, "rt", encoding="utf-8").read()


def unlabelled(files: dict, judged: Judged) -> list[list[str]]:
    """The training sentences of all sets, each once, none of them judged."""
    seen, rows = set(), []
    for train, _ in files.values():
        for text in train.texts:
            row = words(text)
            key = letters(row)
            if key not in seen and not judged.holds(row):
                rows.append(row)
            seen.add(key)
    return rows


def likest(rows: list[list[str]], wanted: list[list[str]], n_words: int) -> list[list[str]]:
    """Of some rows those, up to a number of words, whose words are commonest in `wanted` for how common they are.

    By the mean over a row's words of ln p(word in wanted) - ln p(word in rows), after Moore and Lewis, ACL 2010.
    """
    ours, theirs = (Counter(word for row in some for word in row) for some in (wanted, rows))
    n_ours, n_theirs = ours.total() + len(theirs), theirs.total() + len(theirs)
    score = {w: np.log((ours[w] + 1) / n_ours) - np.log((n + 1) / n_theirs) for w, n in theirs.items()}
    order = np.argsort([-np.mean([score[word] for word in row]) for row in rows], kind="stable")
    upto = np.searchsorted(np.cumsum([len(rows[i]) for i in order]), n_words)
    return [rows[i] for i in order[:upto]]


def write_text(data: Path, out: Path) -> dict:
    """Make the folder's files; the counts of what went into them."""
    files = {name: read_files(SentencesConfig(train=name, folder=str(data / "sentences"))) for name in SETS}
    judged = Judged(words(text) for _, dev in files.values() for text in dev.texts)
    own = unlabelled(files, judged)
    common = Counter(word for row in own for word in row).most_common(VOCABULARY - 2)
    known = {word for word, _ in common}

    def spell(row: list[str]) -> list[str]:
        return [word if word in known else UNK for word in row]

    own = [spell(row) for row in own]
    plain = [row for row in map(spell, wikipedia(data)) if row.count(UNK) <= RARE * len(row)]
    general = likest(plain, own, GENERAL)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(own))
    valid, rest = [own[i] for i in order[:VALID]], [own[i] for i in order[VALID:]]
    rows = general + REPEATS * rest
    for name, chosen in (("text", [rows[i] for i in rng.permutation(len(rows))]), ("valid_text", valid)):
        (out / name).write_text("".join(f"{' '.join(row)}\n" for row in chosen))
    for name, pair in files.items():
        for kind, sentences in zip(("train", "dev"), pair, strict=True):
            (out / f"{name}.{kind}").write_text(spelt(sentences))
    return {
        "sentences": len(own),
        "sentences_words": sum(map(len, own)),
        "wikipedia_words": sum(map(len, general)),
        "vocabulary": len(known) + 2,
    }


def spelt(sentences: Sentences) -> str:
    """A file's content: a label and a sentence in our spelling a line."""
    pairs = zip(sentences.labels, sentences.texts, strict=True)
    return "".join(f"{label} {' '.join(words(text))}\n" for label, text in pairs)

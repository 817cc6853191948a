"""The commands on prepared texts: making a folder of token shards, and what one holds. They need no torch."""

import dataclasses
from pathlib import Path

from rheobase.answer import Answer
from rheobase.models.training.prepare import PrepareConfig
from rheobase.models.training.prepare import prepare as prepare_texts
from rheobase.models.training.token_folder import open_tokens


def prepare(args) -> Answer:
    names = [f.name for f in dataclasses.fields(PrepareConfig)]
    index = prepare_texts(args.source, args.out, PrepareConfig(**{name: getattr(args, name) for name in names}))
    text = f'{args.out}: {_summary(index)}; train with data.text = "{args.out}"'
    return Answer({"path": args.out, "index": index}, text)


def inspect_tokens(path: Path) -> Answer:
    """What a prepared folder holds, after every file was hashed."""
    from tqdm import tqdm

    tokens = open_tokens(path)
    size = sum((path / shard["file"]).stat().st_size for shard in tokens.index["shards"])
    options = {"unit": "B", "unit_scale": True, "delay": 2, "disable": None, "leave": False}
    with tqdm(total=size, desc="sha256", **options) as bar:
        tokens.verify(bar.update)
    lines = [f"{_summary(tokens.index)}; every sha256 is right"]
    lines += [
        f"  {s['file']:<20}{s['tokens']:>16,} tokens{s['bytes']:>18,} bytes of text" for s in tokens.index["shards"]
    ]
    return Answer({"kind": "tokens", "index": tokens.index}, "\n".join(lines))


def _summary(index: dict) -> str:
    separator = "nothing" if index["separator"] is None else f"token {index['separator']}"
    documents = f"{index['documents']['count']:,} documents with {separator} between them"
    shards = f"{len(index['shards']):,} shards of {index['dtype']}"
    return f"{index['tokens']:,} tokens of {index['bytes']:,} bytes of text, {documents}, in {shards}"

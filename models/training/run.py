"""A run: a folder with config.toml, tokenizer.json, model/, checkpoints/, log.jsonl and metrics.json."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rheobase.models import Classifier, ClassifierConfig, LanguageModel, load_model
from rheobase.models._frames import FrameModel
from rheobase.models._sources import SHIPPED, model_folder, shipped_names
from rheobase.models.training.classify import LabelledCorpus, encode_parts
from rheobase.models.training.compression import PruneConfig, QuantiseConfig, Sparsity
from rheobase.models.training.corpus import Corpus, Ids, Splits, load_corpus, names_prepared
from rheobase.models.training.data import BUILT_IN, DataConfig, unknown_option
from rheobase.models.training.datasets import DATA_SETS
from rheobase.models.training.evaluate import Evaluation
from rheobase.models.training.event_corpus import EventCorpus, load_events
from rheobase.models.training.event_sets import EventsConfig
from rheobase.models.training.objective import BudgetConfig, TeacherConfig
from rheobase.models.training.sentence_sets import SentencesConfig, read_parts
from rheobase.models.training.token_folder import TOKENIZER
from rheobase.models.training.tokenizers import BUILT, Bytes, Tokenizer, read_tokenizer
from rheobase.spiking import registry
from rheobase.spiking.config import checked, from_table, read_toml, to_table, to_toml
from rheobase.spiking.errors import ConfigError, FormatError, UnsupportedError
from rheobase.spiking.files import read_bytes, sha256, write_atomic

FREE = (
    "steps",
    "evaluate_every",
    "checkpoint_every",
    "threads",
    "device",
    "accumulate",
    "recompute",
    "compile",
    "sharding",
    "tensorboard",
)
"""settings of [train] that may change when a run is resumed"""
RANGES = {
    "learning_rate": (0.0, math.inf),
    "warmup": (0, math.inf),
    "weight_decay": (0.0, math.inf),
    "clip": (1e-12, math.inf),
    "seed": (0, 2**63),
}
CHOICES = {"precision": ("float32", "float64", "bf16"), "sharding": ("none", "fsdp")}
MOST_THREADS = 1024
"""beyond that torch or the system fails, in words of its own"""
BYTES = (None, "bytes")
"""what `data.tokenizer` says where tokens are the text's own bytes"""
NAMED = (BUILT_IN, *DATA_SETS, *BUILT)
FILE = "a file"
"""what `RunConfig.fixed` says of a text or a tokenizer by its path"""
FROM_TOKENIZER = 0
"""the model's vocabulary before `RunConfig.fitted`, where the configuration gives none"""
MEASURED = {
    "text_sha256": str,
    "weights_sha256": str,
    "best_step": int,
    "parameters": int,
    "train_seconds": float,
    "sparsity": Sparsity,
}
"""what metrics.json holds of every training"""
CONFIGS = Path(__file__).parent.parent / "configs"


def config_names() -> list[str]:
    """The built-in training configurations."""
    return sorted(p.stem for p in CONFIGS.glob("*.toml"))


def config_path(name: str) -> Path:
    """A TOML file, or the built-in configuration of that name; raises ConfigError if there is none."""
    if name.endswith(".toml"):
        return Path(name)
    if name not in config_names():
        remedy = registry.nearest(name, config_names())
        raise ConfigError("train", "a TOML file or a built-in configuration", repr(name), remedy)
    return CONFIGS / f"{name}.toml"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained."""

    steps: int = 800
    """number of updates"""
    batch: int = 32
    """sequences an update, of all ranks and micro-batches together: a step is as many tokens on any machine"""
    context: int = 64
    """tokens a sequence; the gradient is cut there"""
    learning_rate: float = 1e-2
    """at its highest"""
    warmup: int = 40
    """updates over which the learning rate rises from 0; it then falls to 0 along a cosine"""
    weight_decay: float = 0.01
    """of AdamW, on matrices only"""
    clip: float = 1.0
    """largest norm of the whole gradient"""
    restart: bool = False
    """zero each EGRU's c at every cut, as the reference does, in training and evaluation"""
    seed: int = 0
    """of initial weights, dropout and crops"""
    evaluate_every: int = 200
    """updates between two looks at the validation part"""
    checkpoint_every: int = 200
    """updates between two checkpoints"""
    evaluate_batch: int = 32
    """streams in evaluation"""
    threads: int | None = None
    """CPU threads of this run, all there are if not given; small models are fastest on one"""
    device: str = "cpu"
    """"cpu" or "cuda\""""
    accumulate: int = 1
    """micro-batches an update, one after the other on each rank, whose mean gradient it takes"""
    precision: str = "float32"
    """"float32";  "float64";  "bf16": products in bfloat16 by autocast, while weights, states and spikes' membranes
    stay in float32, as do torch's own LSTM and GRU"""
    recompute: bool = False
    """keep no activations within blocks and layers, but compute them again for the gradient"""
    compile: bool = False
    """let `torch.compile` fuse what each block or layer does between its products; the first step takes a minute or
    more. The sums round as they are fused, and dropout draws other numbers than without it"""
    sharding: str = "none"
    """of torchrun's ranks, "none": each holds the whole model (DDP);  "fsdp": each holds a share of it (FSDP2)"""
    tensorboard: bool = False
    """write the numbers of log.jsonl for TensorBoard too, to RUN/tensorboard"""


SECTIONS = {
    "data": DataConfig,
    "sentences": SentencesConfig,
    "events": EventsConfig,
    "train": TrainConfig,
    "budget": BudgetConfig,
    "teacher": TeacherConfig,
    "prune": PruneConfig,
    "quantise": QuantiseConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run: the model by its file's name with its settings, and a section a part."""

    model: str
    settings: object
    data: DataConfig = DataConfig()
    sentences: SentencesConfig = SentencesConfig()
    events: EventsConfig = EventsConfig()
    train: TrainConfig = TrainConfig()
    budget: BudgetConfig = BudgetConfig()
    teacher: TeacherConfig = TeacherConfig()
    prune: PruneConfig = PruneConfig()
    quantise: QuantiseConfig = QuantiseConfig()

    @classmethod
    def from_table(cls, table: dict, where: str = "config") -> "RunConfig":
        """From a table with [model] (its `name` and its settings) and those of `SECTIONS`.

        raises  ConfigError: an unknown section, key or model, with the nearest match
        """
        for key, value in table.items():
            if not isinstance(value, dict):
                raise ConfigError(where, f"a section [{key}]", repr(value), "write a table")
            if key not in ("model", *SECTIONS):
                remedy = registry.nearest(key, ("model", *SECTIONS))
                raise ConfigError(where, "a known section", repr(key), remedy)
        model = dict(table.get("model", {}))
        name = model.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(where, 'a model, such as [model] name = "egru_lm"', repr(name), "name one")
        module = registry.get("rheobase.models", name)
        sections = {section: from_table(kind, table.get(section, {}), section) for section, kind in SECTIONS.items()}
        for section, key in (("sentences", "train"), ("events", "set")):
            if getattr(sections[section], key) is None and sections[section] != SECTIONS[section]():
                raise ConfigError(f"{section}.{key}", "what is classified", "none", f"name it, or drop [{section}]")
        sees = sections["events"].set is not None
        kind, wanted, such = (
            (FrameModel, "a classifier of recordings", "gesture")
            if sees
            else (LanguageModel, "a language model", "egru_lm")
        )
        found = getattr(module, "Model", None)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise ConfigError(where, wanted, repr(name), f'name one, such as "{such}"')
        module.Model.require_whole(name)
        if sees and sections["sentences"].train is not None:
            raise ConfigError(where, "[events] or [sentences]", "both", "drop one")
        if not sees and (sections["data"].tokenizer not in BYTES or names_prepared(sections["data"].text)):
            model.setdefault("vocabulary", FROM_TOKENIZER)
        config = cls(model=name, settings=from_table(module.Model.Config, model, "model"), **sections)
        if config.train.threads is not None and not 1 <= config.train.threads <= MOST_THREADS:
            wanted, got = f"from 1 to {MOST_THREADS}", str(config.train.threads)
            raise ConfigError("train.threads", wanted, got, "mend it or leave it out")
        for key, (least, most) in RANGES.items():
            value = getattr(config.train, key)
            if not least <= value < most:
                raise ConfigError(f"train.{key}", f"from {least} to below {most}", str(value), "mend it")
        for key, known in CHOICES.items():
            value = getattr(config.train, key)
            if value not in known:
                raise ConfigError(f"train.{key}", " or ".join(map(repr, known)), repr(value), "name one of them")
        for key in ("steps", "batch", "context", "evaluate_every", "checkpoint_every", "evaluate_batch", "accumulate"):
            if getattr(config.train, key) < 1:
                raise ConfigError(f"train.{key}", "at least 1", str(getattr(config.train, key)), "raise it")
        return config

    @property
    def classifies(self) -> bool:
        """Whether the run learns to classify sentences, and not to predict text."""
        return self.sentences.train is not None

    @property
    def sees(self) -> bool:
        """Whether the run learns to classify recordings of events."""
        return self.events.set is not None

    def fixed(self) -> dict:
        """The part of the table that a run may not change between a checkpoint and its resumption.

        Where files lie may change: the text and the teacher have digests of their own, the tokenizer is the run's.
        """
        table = self.from_table(self.to_table()).to_table()  # as the file has it: 0 in a field of floats is 0.0
        data = table["data"]
        paths = ("text", "valid_text", "test_text", "tokenizer")
        data |= {key: FILE for key in paths if data.get(key, BUILT_IN) not in NAMED}
        free = {"data": ("folder", "workers"), "sentences": ("folder",), "events": ("folder",), "train": FREE}
        free["teacher"] = ("model",)
        return {name: {k: v for k, v in part.items() if k not in free.get(name, ())} for name, part in table.items()}

    def fitted(self, tokenizer: Tokenizer | None) -> "RunConfig":
        """The same with the tokenizer's vocabulary where none was given, the tokenizer that a prepared folder has where
        none was named, and the tokenizer's digest; with no tokenizer, the same.

        raises  ConfigError: another tokenizer than that of the digest; a vocabulary smaller than the tokenizer's; of
                bytes it may be, if the text has no others
        """
        if tokenizer is None:
            return self
        if self.data.tokenizer is None and tokenizer.unit != "byte":
            own = str(Path(self.data.text) / TOKENIZER)
            return replace(self, data=replace(self.data, tokenizer=own)).fitted(tokenizer)
        if tokenizer.unit != "byte" and self.data.tokenizer_sha256 is None:
            return replace(self, data=replace(self.data, tokenizer_sha256=tokenizer.digest)).fitted(tokenizer)
        self.require_same(tokenizer, "data.tokenizer")
        given, needed = self.settings.vocabulary, tokenizer.vocabulary
        if given == FROM_TOKENIZER:
            return replace(self, settings=replace(self.settings, vocabulary=needed))
        if given < needed and tokenizer.unit != "byte":
            raise ConfigError("model.vocabulary", f"the tokenizer's {needed} or more", str(given), "leave it out")
        return self

    def require_same(self, tokenizer: Tokenizer, where: object) -> None:
        """Refuse another tokenizer than that of `data.tokenizer_sha256`, if it is given; raises ConfigError."""
        wanted = self.data.tokenizer_sha256
        if wanted not in (None, tokenizer.digest):
            remedy = "put the same tokenizer back, or for a new training leave out data.tokenizer_sha256"
            raise ConfigError(where, f"a tokenizer of sha256 {wanted[:12]}…", f"{tokenizer.digest[:12]}…", remedy)

    def to_table(self) -> dict:
        """The table that `from_table` reads."""
        model = {"name": self.model, **to_table(self.settings)}
        return {"model": model, **{section: to_table(getattr(self, section)) for section in SECTIONS}}

    def build(self):
        """A new model with these settings: with [sentences], a classifier on the language model."""
        kind = Classifier if self.classifies else registry.get("rheobase.models", self.model).Model
        return kind(self.model_config)

    @property
    def model_config(self):
        """The configuration of the model that `build` makes."""
        if not self.classifies:
            return self.settings
        s, settings = self.sentences, to_table(self.settings)
        own = {"classes": s.labels, "dropout": s.dropout, "counted": s.counted}
        return ClassifierConfig(trunk=self.model, settings=settings, **own)

    def corpus(self, tokenizer: Tokenizer | None = None) -> Corpus | LabelledCorpus | EventCorpus:
        """The text or the sentences, cut and encoded, by a tokenizer made as [data] says if none is given; or the
        recordings as frames."""
        if self.sees:
            return load_events(self.events)
        if self.classifies:
            parts = read_parts(self.sentences)
            options = unknown_option(self.data)
            return encode_parts(parts, self.train.context, tokenizer or self.data.tokenizer or "bytes", **options)
        return load_corpus(self.data, self.train.context, tokenizer)

    def splits(self) -> Splits:
        """The parts of a language model's text."""
        return self.corpus().splits


@dataclass(frozen=True)
class Run:
    """Paths and contents of a run folder."""

    folder: Path

    @classmethod
    def vacant(cls, folder: str | Path) -> "Run":
        """The run that a folder may become; raises FormatError if a run is there already."""
        run = cls(Path(folder))
        if run.config_path.exists():
            raise FormatError(
                folder, "a folder without a run", "a run", "resume it with --resume or choose another --out"
            )
        if run.model_path.exists() or any(run.checkpoints.glob("step-*")):
            raise FormatError(folder, "a folder without a run", "what is left of one", "choose another --out")
        return run

    @classmethod
    def create(cls, folder: str | Path, config: RunConfig, tokenizer: Tokenizer | None) -> "Run":
        """Make the folder, with tokenizer.json unless bytes are named or none; raises FormatError if a run is there."""
        run = cls.vacant(folder)
        try:
            text = to_toml(config.to_table()).encode()
        except UnicodeEncodeError as error:
            got = ascii(error.object[error.start : error.end])
            raise ConfigError(folder, "settings in UTF-8, names of files too", got, "rename the file") from None
        if tokenizer and config.data.tokenizer not in BYTES:
            write_atomic(run.tokenizer_path, tokenizer.to_json().encode())
        write_atomic(run.config_path, text)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run, or a shipped model by its name, unless a run's folder has it; raises FormatError if there is
        none."""
        run = cls(Path(folder))
        if not run.config_path.is_file() and str(folder) in shipped_names():
            run = cls(SHIPPED / str(folder))
        if not run.config_path.is_file():
            remedy = f"name the --out of a training, or a shipped model: {', '.join(shipped_names()) or 'none is here'}"
            raise FormatError(folder, "a run folder with config.toml", "none", remedy)
        return run

    @property
    def shipped(self) -> bool:
        """Whether it came with the package, and so is not written to."""
        return self.folder.parent == SHIPPED

    @property
    def config_path(self) -> Path:
        return self.folder / "config.toml"

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def model_path(self) -> Path:
        return self.folder / "model"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def config(self) -> RunConfig:
        return RunConfig.from_table(read_toml(self.config_path), str(self.config_path))

    def tokenizer(self) -> Tokenizer:
        """What made the model's tokens; raises FormatError where tokenizer.json is missing or foreign, ConfigError
        where it is another than the training's, and UnsupportedError where recordings are classified."""
        if self.config.sees:
            raise UnsupportedError(
                self.folder, "a run on text", "one on recordings", "use train, eval, count, simulate"
            )
        if self.config.data.tokenizer in BYTES:
            return Bytes()
        tokenizer = read_tokenizer(self.tokenizer_path)
        self.config.require_same(tokenizer, self.tokenizer_path)
        return tokenizer

    @property
    def measure(self) -> str:
        """The name under which log.jsonl has a step's loss."""
        return "cross_entropy" if self.config.classifies or self.config.sees else self.tokenizer().measure

    def corpus(self) -> Corpus | LabelledCorpus | EventCorpus:
        """What the run was trained on, cut and encoded; raises FormatError if it is no longer the same."""
        config = self.config
        try:
            corpus = config.corpus(None if config.sees else self.tokenizer())
        except FormatError as error:
            if not self.shipped:
                raise
            name = self.folder.name
            remedy = f"the package has an excerpt alone; test figures: rheobase card {name}"
            raise FormatError(f"{name}: {error.where}", error.expected, error.got, remedy) from None
        if self.metrics().get("text_sha256") not in (None, corpus.digest):
            text = config.events.set or config.sentences.train or config.data.text
            what = "recordings" if config.sees else "text"
            raise FormatError(text, f"the {what} of the training", "another", f"put the same {what} back")
        return corpus

    def splits(self) -> Splits:
        """The parts of a language model's text; raises UnsupportedError for a classifier, which has none."""
        if self.config.classifies or self.config.sees:
            raise UnsupportedError(
                self.folder, "a language model's run", "a classifier's", "use eval, which takes both"
            )
        return self.corpus().splits

    def tokens(self, part: str) -> Ids:
        """The ids of "valid" or "test": of the excerpt that a shipped model has, or else of the whole text."""
        path = self.excerpt_path(part)
        return self.tokenizer().encode(read_bytes(path, "a text")) if path.is_file() else getattr(self.splits(), part)

    def excerpt_path(self, part: str) -> Path:
        return self.folder / f"excerpt.{part}.txt"

    def model(self):
        """The trained model: the one that was best on the validation part; raises FormatError where it is another."""
        folder = model_folder(self.folder)
        if not (folder / "config.json").is_file():
            raise FormatError(self.folder, "a finished run", "one without model/", "finish it with train --resume")
        model = load_model(folder)
        if model.config != self.config.model_config or self.metrics().get("weights_sha256") not in (
            None,
            self.weights(),
        ):
            raise FormatError(folder, "the model of this run's training", "another", "put it back, or train --resume")
        return model

    def weights(self) -> str:
        """The SHA-256 of the trained model's file."""
        return sha256(read_bytes(model_folder(self.folder) / "model.safetensors", "a model's weights"))

    def log(self) -> list[dict]:
        """The records of log.jsonl, one a line; raises FormatError or ConfigError for another line."""
        lines = read_bytes(self.log_path, "a run's log").splitlines()
        try:
            records = [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError, RecursionError):
            raise FormatError(self.log_path, "one JSON record a line", "another line", "resume the run") from None
        kinds = {"step": int, "valid": float, "rates": tuple[float, ...], self.measure: float}
        for i, record in enumerate(records, 1):
            where = f"{self.log_path} line {i}"
            if "step" not in record:
                raise FormatError(where, "a step", "none", "resume the run")
            checked({key: record[key] for key in kinds.keys() & record}, kinds, where)
        return records

    def metrics(self) -> dict:
        """What metrics.json holds; empty if nothing was measured yet. Raises FormatError or ConfigError for anything
        else than `add_metrics` wrote."""
        path = self.folder / "metrics.json"
        if not path.is_file():
            return {}
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError, RecursionError):
            raise FormatError(path, "a table in JSON", "something else", "delete it and measure anew") from None
        kinds = dict(MEASURED)
        if not (self.config.classifies or self.config.sees):
            kinds |= {"valid": Evaluation, "test": Evaluation}
        checked({key: found[key] for key in kinds.keys() & found}, kinds, str(path))
        return found

    def figures(self, model) -> dict[str, dict]:
        """What metrics.json says of a language model's "valid" and "test" part, as far as they were measured.

        raises  FormatError: figures of another model, or in another unit
        """
        metrics, layers = self.metrics(), len(model.event_layers)
        found = {part: metrics[part] for part in ("valid", "test") if part in metrics}
        for figures in found.values():
            sizes = {len(figures.get(key, ())) for key in ("rates", "dead", "saturated")}
            if figures[self.measure] is None or sizes != {layers}:
                raise FormatError(self.folder, "figures in metrics.json", "others", "measure them anew: rheobase eval")
        return found

    def add_metrics(self, *, fresh: bool = False, **entries) -> None:
        """Add entries to metrics.json; `fresh` drops what was measured before."""
        plain = {k: asdict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in entries.items()}
        before = {} if fresh else self.metrics()
        write_atomic(self.folder / "metrics.json", json.dumps(before | plain, indent=2).encode())


def require_tokens_of(path: str | Path, tokenizer: Tokenizer) -> None:
    """Refuse a run whose token ids mean something else; a bare model's folder does not say what its ids mean."""
    if not (Path(path) / "config.toml").is_file():
        return
    theirs = Run.open(path).tokenizer()
    if theirs.digest != tokenizer.digest:
        name = "bytes" if theirs.unit == "byte" else f"{path}/tokenizer.json"
        wanted, remedy = f"the tokenizer of {path}", f'set data.tokenizer = "{name}"'
        raise ConfigError("data.tokenizer", wanted, f"another, of {tokenizer.vocabulary} {tokenizer.unit}s", remedy)

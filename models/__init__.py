"""Language models, a classifier of sentences on top of them, and two of event-camera recordings.

Each lives in a file of its own with `Config` and `Model`, found by the file's name; language models and the classifiers
of recordings have `lower()`.
"""

if __name__ != "rheobase.models":
    raise ImportError("import rheobase.models, not models: from the repository's root the bare name is a second copy")

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rheobase.spiking import registry
from rheobase.spiking._lazy import lazy_names
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.files import read_bytes

if TYPE_CHECKING:
    from rheobase.models._exporting import export_program, flat_state
    from rheobase.models._frames import FrameModel
    from rheobase.models._pretrained import LanguageModel, Pretrained
    from rheobase.models._sources import model_folder, shipped_names
    from rheobase.models.classifier import Classifier, ClassifierConfig
    from rheobase.models.egru_frames import EGRUFrames, EGRUFramesConfig
    from rheobase.models.egru_lm import EGRULM, EGRULMConfig
    from rheobase.models.gesture import Gesture, GestureConfig
    from rheobase.models.gru_lm import GRULM, GRULMConfig
    from rheobase.models.lstm_lm import LSTMLM, LSTMLMConfig
    from rheobase.models.rwkv4 import RWKV4, RWKV4Config
    from rheobase.models.spikegpt import SpikeGPT, SpikeGPTConfig

_HOMES = {
    "_exporting": "export_program, flat_state",
    "_frames": "FrameModel",
    "_pretrained": "LanguageModel, Pretrained",
    "_sources": "model_folder, shipped_names",
    "classifier": "Classifier, ClassifierConfig",
    "egru_frames": "EGRUFrames, EGRUFramesConfig",
    "egru_lm": "EGRULM, EGRULMConfig",
    "gesture": "Gesture, GestureConfig",
    "gru_lm": "GRULM, GRULMConfig",
    "lstm_lm": "LSTMLM, LSTMLMConfig",
    "rwkv4": "RWKV4, RWKV4Config",
    "spikegpt": "SpikeGPT, SpikeGPTConfig",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)


def load_model(path: str | Path, **hub_options) -> "Pretrained":
    """Load whichever model a folder holds, or a name stands for: `path` and `hub_options` as of `model_folder`.

    returns the model, on the CPU and in evaluation mode
    raises  FormatError: no such model there, or its files are damaged
    """
    from rheobase.models._sources import model_folder

    folder = model_folder(path, **hub_options)
    header = read_bytes(folder / "config.json", "a model's configuration")
    try:
        name = json.loads(header)["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(folder / "config.json", "JSON that names a model", "something else", "save it anew") from None
    try:
        module = registry.get("rheobase.models", name) if isinstance(name, str) else None
    except ConfigError as error:
        raise FormatError(folder / "config.json", error.expected, error.got, error.remedy) from None
    if not hasattr(module, "Model"):
        raise FormatError(folder / "config.json", "JSON that names a model", repr(name), "save it anew")
    return module.Model.from_pretrained(folder)


__all__ = [
    "Classifier",
    "ClassifierConfig",
    "EGRUFrames",
    "EGRUFramesConfig",
    "EGRULM",
    "EGRULMConfig",
    "FrameModel",
    "GRULM",
    "GRULMConfig",
    "Gesture",
    "GestureConfig",
    "LSTMLM",
    "LSTMLMConfig",
    "LanguageModel",
    "Pretrained",
    "RWKV4",
    "RWKV4Config",
    "SpikeGPT",
    "SpikeGPTConfig",
    "export_program",
    "flat_state",
    "load_model",
    "model_folder",
    "shipped_names",
]

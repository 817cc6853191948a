"""Rheobase: train, count, simulate and export spiking and event-based language models.

Only the version and lazy names live here, so that `import rheobase.spiking` loads neither models nor backends.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from rheobase.models import Pretrained

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: "str | Path", **hub_options) -> "Pretrained":
    """Load a model from a run's folder, one written by `save_pretrained`, the package itself, or the Hugging Face hub.

    path         a folder that holds `config.json` and `model.safetensors`, or a run folder with these in `model/`; the
                 name of a shipped model (`rheobase.models.shipped_names()`); or "user/name"
    hub_options  for the hub, such as revision="v1"
    returns      the model, in evaluation mode
    raises       FormatError: there is no such model, or its files are damaged
    """
    from rheobase.models import load_model

    return load_model(path, **hub_options)

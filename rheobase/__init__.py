"""Rheobase: train, count, simulate and export spiking and event-based language models.

Only the version and lazy names live here, so that `import rheobase.spiking` loads neither models nor backends.
"""

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path):
    """Load the model of a run folder, or of a folder written by `model.save_pretrained`.

    path     a folder that holds `config.json` and `model.safetensors`, or a run folder with these in `model/`
    returns  the model, in evaluation mode
    raises   FormatError: the folder holds no such model, or its files are damaged
    """
    from rheobase.models import load_model

    return load_model(path)

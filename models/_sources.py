"""Where a model's files lie: in a folder, in a run's, in the package itself, or on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from rheobase.spiking.errors import FormatError

SHIPPED = Path(__file__).parent / "shipped"
FILES = ("config.json", "model.safetensors")
"""all that is fetched from the hub: no pickle, no code"""


def shipped_names() -> list[str]:
    """Names of the trained models that come with the package, sorted."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.toml"))


def model_folder(name: str | Path, **hub_options) -> Path:
    """The path to a model's `config.json` and `model.safetensors`, fetched into the hub's cache if need be.

    name         a folder of `save_pretrained`, a run's, the name of a shipped model, or "user/name" on the hub; the
                 first of these that there is
    hub_options  of `huggingface_hub.snapshot_download`, such as revision="v1" or local_files_only=True
    raises       FormatError: there is none
    """
    path, text = Path(name), str(name)
    if path.is_dir():
        inside = path / "model"
        return inside if inside.is_dir() else path
    if text in shipped_names():
        return SHIPPED / text
    wanted = "a model's folder, a shipped model or user/name on the hub"
    if path.is_absolute() or text.count("/") != 1:
        raise FormatError(name, wanted, "none of them", f"check the path; shipped: {', '.join(shipped_names()) or '-'}")
    try:
        return Path(snapshot_download(text, allow_patterns=FILES, **hub_options))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise FormatError(name, wanted, why, "check the name, the network and your token") from None

"""Exporters. Each lives in a file or folder of its own, found by its name, with

    export(graph, out, *, calibration, allow_lossy, version, ...) -> Artifact     what `write_artifact` returns
    verify(artifact, ...) -> Report
    FORMAT = "mine/1"                                      what its manifests say: `verify` refuses any other

where the dots are options of its own, each with a default, which Python's callers may give.
"""

import inspect
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np

from rheobase.backends.artifact import MANIFEST, SEAL, Artifact, Report, open_artifact, require_format
from rheobase.spiking import registry
from rheobase.spiking.errors import ConfigError, FormatError, ShapeError

_OF_SPINNAKER2 = {"emulation", "against"}


def export(
    model_or_graph, to: str, out: str | Path, *, calibration=None, allow_lossy: bool = False, **options
) -> Artifact:
    """Write a model for a machine or another tool, or refuse; nothing is approximated in silence.

    model_or_graph  a model with `lower()`, or an EventGraph
    to              the exporter's name, such as "spinnaker2"
    out             a directory that does not exist yet; it appears only when it is whole
    calibration     tokens [B, T], or [T], of real text, where the exporter chooses scales from data
    allow_lossy     accept changes beyond those that are bounded and recorded
    options         the exporter's own, such as dram=False of spinnaker2
    returns         the Artifact; every deviation and its bound is in its manifest
    raises          UnsupportedError, LossyExportError, ConfigError: what stands in the way, and what would help
    """
    graph = model_or_graph.lower() if hasattr(model_or_graph, "lower") else model_or_graph
    exporter = registry.get("rheobase.backends.exporters", to)
    calibration = None if calibration is None else np.atleast_2d(np.asarray(calibration))
    given = {"calibration": calibration, "allow_lossy": allow_lossy, "version": version("rheobase")}
    _refuse_others(f"{to} export", exporter.export, {"graph", "out", *given}, options)
    return exporter.export(graph, out, **given, **options)


def verify(path: str | Path, **options) -> Report:
    """Check an exported directory against its hashes and its recorded trace, reading nothing but the directory.

    options  the exporter's own, such as emulation="qemu" of spinnaker2
    returns  Report(ok, compared, mismatches, problem); a damaged file gives ok=False and is named in `problem`
    raises   FormatError: `path` is no exported directory;  ConfigError: an option that its exporter does not have
    """
    if not any((Path(path) / name).exists() for name in (MANIFEST, SEAL)):
        raise FormatError(path, "an exported directory", "none", "name the --out of an export")
    try:
        artifact, exporter = open_exported(path)
    except (FormatError, ConfigError) as error:
        return Report(False, 0, 0, str(error))
    refuse_options(artifact, exporter, options)
    try:
        report = exporter.verify(artifact, **options)
        if report.ok and not report.compared:
            raise FormatError(path, "something that can be compared", "nothing", "export it anew")
        return report
    except (FormatError, ConfigError, ShapeError) as error:
        return Report(False, 0, 0, str(error))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        problem = FormatError(path, "a well-formed artefact", f"{type(error).__name__}: {error}", "do not use it")
        return Report(False, 0, 0, str(problem))


def open_exported(path: str | Path) -> tuple[Artifact, ModuleType]:
    """An artefact, as `open_artifact` gives it, and its exporter.

    raises  FormatError, as `open_artifact`, and where the format is not the exporter's;  ConfigError: no such exporter
    """
    artifact = open_artifact(path)
    exporter = registry.get("rheobase.backends.exporters", artifact.manifest["exporter"])
    if hasattr(exporter, "FORMAT"):
        require_format(artifact, exporter.FORMAT)
    return artifact, exporter


def refuse_options(artifact: Artifact, exporter: ModuleType, options) -> None:
    """Raise ConfigError for an option that the exporter's `verify` does not have."""
    name = artifact.manifest["exporter"]
    for option in sorted(_OF_SPINNAKER2 & set(options)) if name != "spinnaker2" else ():
        wanted = f"an artefact of spinnaker2, since {option} is of these alone"
        raise ConfigError(artifact.path, wanted, f"one of {name}", f"leave {option} out")
    _refuse_others(f"{name} verify", exporter.verify, {"artifact"}, options)


def _refuse_others(where: str, function, given: set[str], options) -> None:
    own = [name for name in inspect.signature(function).parameters if name not in given]
    for name in options:
        if name not in own:
            remedy = registry.nearest(name, own) if own else "leave it out"
            raise ConfigError(where, f"one of {', '.join(own)}" if own else "no options", repr(name), remedy)


__all__ = ["Artifact", "Report", "export", "verify"]

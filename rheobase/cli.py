"""The command line: what can be asked, and how answers and failures are shown."""

import argparse
import json
import os
import sys
import traceback

from rheobase import __version__

ABOUT = "Train spiking and event-based language models, count and price a token, export and verify."


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    top = argparse.ArgumentParser(prog="rheobase", description=ABOUT)
    top.add_argument("--version", action="version", version=f"rheobase {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *arguments):
        sub = commands.add_parser(name, help=text, description=text, parents=[common])
        for names, options in arguments:
            sub.add_argument(*names, **options)

    def arg(*names, **options):
        return names, options

    run = arg("run", metavar="RUN", help="a run folder, the --out of a training")
    shipped = arg("run", metavar="RUN", help="a run folder, or a shipped model")
    either = arg("run", metavar="RUN", help="a run folder, a shipped model, or a graph stored by import")
    fed = arg("--input", metavar="NPY", help="what a stored graph is fed, [B, T, ...]; noise if not given")
    tokens = arg("--tokens", type=_positive, default=1000, help="tokens of the test part (default 1000)")
    sensor = arg("--sensor", type=_sensor, metavar="WxH", help="of an event file: width and height in pixels")
    out = arg("--out", required=True, help="where to write; must not exist yet")
    command(
        "quickstart",
        "train, evaluate, count, export, verify and report, on real text, without a download",
        arg("--out", default="quickstart", help="folder to make (default quickstart)"),
        arg("--small", action="store_true", help="a few seconds of training: shows the way, not the quality"),
        arg("--text", help="a text file of yours instead of Python's language reference"),
    )
    command(
        "prepare",
        "texts to a folder of token shards, which [data] text of a configuration can name",
        arg("source", nargs="+", metavar="SOURCE", help="text, .jsonl or .parquet; .gz, .xz or .zst of the first two"),
        out,
        arg("--tokenizer", default="bytes", help="bytes (default), words (of all the texts), or a JSON file"),
        arg("--field", default="text", help="of JSON Lines and Parquet: where the text is (default text)"),
        arg("--encoding", default="utf-8", choices=["utf-8", "ascii", "bytes"], help="of text files (default utf-8)"),
        arg("--jobs", type=_positive, default=1, help="processes (default 1); the files are the same for any number"),
        arg("--shard-tokens", type=_count, default="100M", help="tokens a shard, about (default 100M)"),
    )
    command(
        "train",
        "train a model from a TOML configuration",
        arg("config", nargs="?", metavar="CONFIG", help="a TOML file, or the name of a built-in configuration"),
        arg("--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.steps=200"),
        arg("--out", help="the run folder (default runs/NAME)"),
        arg("--resume", action="store_true", help="go on with the run in --out, from its last checkpoint"),
        arg("--dry-run", action="store_true", help="only say what it will take; writes nothing"),
    )
    command(
        "sweep",
        "train every run that a sweep asks for, and set quality beside operations",
        arg("sweep", metavar="SWEEP", help="a TOML file: docs/sweeps.md"),
        arg("--out", required=True, help="folder of the sweep; new or empty unless --resume"),
        arg("--jobs", type=_positive, default=1, help="runs at once, of one thread each (default 1)"),
        arg("--resume", action="store_true", help="go on with the sweep in --out; finished runs are kept"),
        arg("--test", action="store_true", help="judge the runs on the test part too"),
    )
    command(
        "eval",
        "bits and perplexity on the test part, or how many of its sentences or recordings are classified rightly",
        arg("run", metavar="RUN", help="a run folder, or with --text a shipped model"),
        arg("--text", metavar="FILE", help="a text of yours to predict, in place of the test part"),
        arg(
            "--beside",
            action="append",
            default=[],
            metavar="RUN",
            help="another run that classifies the same sentences; may be repeated",
        ),
    )
    command(
        "sample",
        "text from a trained model",
        shipped,
        arg("--prompt", default="The ", help="text to go on from"),
        arg("--length", type=_positive, default=300, help="tokens to write (default 300)"),
        arg("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)"),
        arg("--top-k", type=int, default=0, help="draw from the K likeliest tokens; 0 is off (default)"),
        arg("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this mass; 1 is off (default)"),
        arg("--typical", type=float, default=1.0, help="from the most typical of this mass; 1 is off (default)"),
        arg("--repetition-penalty", type=float, default=1.0, help="above 1 repeats less; 1 is off (default)"),
        arg("--trials", type=_positive, default=1, help="texts to write, with seeds SEED, SEED + 1, ... (default 1)"),
        arg("--seed", type=int, default=0, help="of the first text (default 0)"),
    )
    command(
        "count",
        "operations a token, and what they cost on a target",
        either,
        tokens,
        fed,
        arg("--target", action="append", default=[], help="a target's name or TOML file; may be repeated"),
        arg(
            "--prefill", type=_positive, metavar="N", help="count the first N tokens in one call, then one call a token"
        ),
        arg("--measure", action="store_true", help="also read the joules that this machine used for the same tokens"),
        arg("--device", choices=["cpu", "cuda"], help="where to --measure (default cpu)"),
        arg("--strict", action="store_true", help="fail if any operator was not counted"),
    )
    command(
        "simulate",
        "run the lowered model on a simulator",
        either,
        tokens,
        fed,
        arg(
            "--on",
            default="event",
            choices=["event", "firmware", "integer", "torch"],
            help="the simulator (default event)",
        ),
        arg("--device", choices=["cpu", "cuda"], help="where --on torch runs (default cpu)"),
        arg(
            "--record",
            action="append",
            default=[],
            metavar="PATTERN",
            help="outputs to keep: 'layers.*.{c,y}'",
        ),
        arg("--out", help="HDF5 file for the recorded outputs, or an event file such as spikes.aedat4 for one of them"),
        sensor,
        arg(
            "--dt",
            type=float,
            metavar="SECONDS",
            help="of an event file: how long a step is (else the model's own, or 0.001)",
        ),
        arg(
            "--fault",
            metavar="RATES",
            help="with --on integer, on placed elements: late=1e-4,drop=1e-5,flip=1e-9 (a delivery, a bit and token)",
        ),
        arg("--seed", type=int, default=0, help="of the faults (default 0)"),
    )
    command(
        "convert",
        "an event file in another format, by suffix: aedat4 bin bs2 dat es h5 raw; nirdata and npy are only read",
        arg("source", metavar="IN", help="an event file"),
        arg("out", metavar="OUT", help="the event file to write; OUT.json beside it says what was lost"),
        sensor,
        arg("--sample", type=int, metavar="N", help="of .h5 and .nirdata: which recording, from 0 on"),
        arg("--signal", metavar="NODE.NAME", help="of .nirdata: which node's observable"),
        arg("--shift", action="store_true", help="begin at time 0; OUT.json keeps what was taken off"),
    )
    command(
        "export",
        "write a model for a machine or another tool",
        either,
        arg("--to", required=True, help="spinnaker2, nir, events, onnx, pyspinnaker2, or sanafe"),
        out,
        arg("--input", metavar="NPY", help="of a stored graph: [B, T, ...] to choose scales by and to replay"),
        arg("--allow-lossy", action="store_true", help="accept changes beyond the bounded, recorded ones"),
        arg("--chips", type=int, help="spinnaker2: how many chips there are, 1 unless given"),
        arg("--no-dram", action="store_true", help="spinnaker2: embedding and head on processing elements too"),
        arg("--dt", type=float, metavar="S", help="nir, events: seconds a step (the graph's own, else 1e-4 and 1e-3)"),
        arg("--format", metavar="SUFFIX", help="events: aedat4 (default), raw, dat, es, bs2, h5, or nirdata"),
        arg("--gain", choices=["weights", "r"], help="nir: r = 1 and gains in the weights (default), or r = tau / dt"),
        arg("--relay", action="store_true", help="nir: recurrences through a Flatten, which snnTorch needs"),
        arg("--legacy", action="store_true", help="nir: without v_reset, for nir before 1.0.6"),
    )
    command(
        "import",
        "a network of another tool as a graph, to simulate, count, price and export",
        arg("source", metavar="SOURCE", help="FILE.nir, a directory exported to nir, or FILE.py:NAME, which is run"),
        out,
        arg("--dt", type=float, metavar="S", help="FILE.nir: seconds a step, unless the file says"),
        arg("--input-kind", metavar="KIND", help="BINARY, TERNARY, GRADED or DENSE (default, unless the file says)"),
        arg("--written-by", metavar="TOOL", help="norse: mend what its to_nir writes"),
        arg("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="FILE.py: the image that a convolution reads"),
    )
    command(
        "verify",
        "check an exported directory and replay its trace",
        arg("path", metavar="DIR"),
        arg("--emulate", choices=["qemu", "qemu-together"], help="the firmware in QEMU too, PE by PE or all at once"),
        arg("--against", metavar="TRACE", help="an HDF5 trace of a run elsewhere: name the first integer that differs"),
    )
    command(
        "inspect",
        "what a run, a graph, a trace, a folder of tokens, a .pth or an exported directory holds",
        arg("path", metavar="PATH"),
        arg("--out", metavar="PNG", help="draw an exported directory: its map, and energy against activity"),
        arg("--target", metavar="TOML", help="estimate an exported directory with what targets calibrate wrote"),
    )
    command(
        "diff",
        "the first difference of two runs, traces or exported directories",
        arg("a", metavar="A", help="what is expected"),
        arg("b", metavar="B", help="what was got"),
    )
    command(
        "report",
        "one self-contained HTML page about a run",
        run,
        arg(
            "--beside",
            action="append",
            default=[],
            metavar="RUN",
            help="a run to compare with; may be repeated",
        ),
        arg("--image", help="an exported directory of this run"),
        arg("--out", help="the HTML file (default RUN/report.html)"),
    )
    command(
        "targets",
        "machines that can be priced, and their constants measured on a board",
        arg("names", nargs="*", metavar="NAME", help="a target's; or calibrate spinnaker2"),
        arg("--power", action="append", default=[], metavar="CSV", help="calibrate by this log; may be repeated"),
        arg("--trace", action="append", default=[], metavar="H5", help="the trace of the log's run, one for each"),
        arg("--out", metavar="TOML", help="file for the measured constants"),
    )
    command(
        "card",
        "a model card, and with --out the folder to share: for the Hugging Face hub, or as a RUN elsewhere",
        shipped,
        arg("--out", metavar="DIR", help="folder to make, with model, configuration, metrics and card"),
        arg("--license", default="unknown", dest="licence", help="of the weights, such as cc-by-sa-3.0"),
        arg("--note", action="append", default=[], help="a line on the training, such as the machine; may be repeated"),
        arg("--text", help="what the training text is called (default data.text)"),
        arg("--target", default="horowitz-45nm", help="whose bill it shows (default horowitz-45nm)"),
    )
    command("cite", "the papers a run stands on, in BibTeX", shipped)
    command(
        "bench",
        "time the kernels, training and generation beside named baselines",
        arg("parts", nargs="*", metavar="PART", help="lif, wkv, egru, training, simulate, decode (CPU); default all"),
        arg("--device", default="cpu", choices=["cpu", "cuda"], help="where (default cpu)"),
        arg("--rounds", type=_positive, default=9, help="rounds, of which medians are shown (default 9)"),
        arg("--threads", type=_positive, default=1, help="CPU threads (default 1)"),
        arg("--compile", action="store_true", help="time torch.compile's forms of LIF too, a minute of compiling"),
        arg("--small", action="store_true", help="tiny sizes: shows the way, not the speed"),
        arg("--run", metavar="RUN", help="generation by a trained EGRU language model, at its own activity"),
        arg("--out", help="folder to make for bench.json and bench.png"),
    )
    command("doctor", "what this machine has")
    return top


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _count(text: str) -> int:
    """A number such as 5000, 10k, 100M or 1G."""
    power = "kMG".find(text[-1:]) + 1
    return _positive(text[:-1] if power else text) * 1000**power


def _sensor(text: str) -> tuple[int, int]:
    sizes = text.split("x")
    if len(sizes) != 2 or not all(size.isascii() and size.isdigit() and 0 < int(size) <= 1 << 16 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text} is not WIDTHxHEIGHT, such as 640x480")
    return int(sizes[0]), int(sizes[1])


def run(argv: list[str]) -> int:
    """Run one command; 0 done, 1 a stated failure, 2 usage."""
    args = (top := parser()).parse_args(argv)
    if args.command == "train" and not args.config and not (args.resume and args.out):
        top.error("train: a CONFIG is required, or --resume with --out RUN")
    from rheobase.spiking.errors import RheobaseError

    try:
        if args.command == "prepare":
            from rheobase import preparing as commands  # without torch
        else:
            from rheobase import commands

        if sys.stdout:  # which a shell may have closed
            sys.stdout.reconfigure(errors="replace")
        answer = getattr(commands, {"import": "import_"}.get(args.command, args.command))(args)
        shown = _as_json({"ok": answer.ok, **answer.table}) if args.json else answer.text
        done = _print(shown) and answer.ok
    except BrokenPipeError:
        _print_nowhere()
        return 1
    except RheobaseError as error:
        return _fail(args, str(error), error.fields)
    except OSError as error:
        place = error.filename2 or error.filename
        return _fail(args, f"{place}: {error.strerror}; name another place" if place else str(error))
    except KeyboardInterrupt:
        resumes = args.command in ("train", "sweep") and not getattr(args, "dry_run", False)
        return _fail(args, "interrupted" + (", go on with --resume" if resumes else ""))
    except Exception as error:
        if args.debug:
            raise
        return _fail(args, f"internal error, {type(error).__name__}: {error}; --debug shows where")
    return 0 if done else 1


def _print(text: str) -> bool:
    """Whether standard output took it; what stops that is said elsewhere, but for a reader that has gone."""
    try:
        if text:
            print(text, flush=True)
        return True
    except OSError as error:
        _print_nowhere()
        if not isinstance(error, BrokenPipeError):
            print(f"rheobase: standard output, {error.strerror}: give it another place", file=sys.stderr)
        return False


def _print_nowhere() -> None:
    """So that Python, at its end, does not try again what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_json(table: dict, indent: int | None = 2) -> str:
    """JSON as any reader takes it: null for NaN and infinities, for which it has no word."""
    plain = json.loads(json.dumps(table, default=str), parse_constant=lambda _: None)
    return json.dumps(plain, indent=indent, allow_nan=False)


def _fail(args, line: str, fields: dict | None = None) -> int:
    if args.debug:
        traceback.print_exc()
    if not (args.json and _print(_as_json({"ok": False, "error": line, **(fields or {})}, indent=None))):
        print(f"rheobase: {' '.join(line.split())}", file=sys.stderr)
    return 1

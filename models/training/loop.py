"""The training loop: truncated back-propagation through time, AdamW, and a run that survives kill -9.

Everything random is a function of the seed and the step, or lies in the checkpoint, so a run that was killed at
any moment and resumed ends with the same bits as one that was not (same machine, same number of threads, CPU).
"""

import contextlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from rheobase.models.training import sharding
from rheobase.models.training.checkpoint import alone, load_checkpoint, newest_checkpoint, save_checkpoint
from rheobase.models.training.classify import LabelledCorpus
from rheobase.models.training.compression import Compression
from rheobase.models.training.corpus import Corpus
from rheobase.models.training.distributed import Ranks, joined
from rheobase.models.training.event_corpus import EventCorpus
from rheobase.models.training.event_task import EventTask
from rheobase.models.training.language_task import LanguageTask
from rheobase.models.training.objective import teacher_digest
from rheobase.models.training.record import Log, Meter
from rheobase.models.training.run import FREE, Run, RunConfig, TrainConfig
from rheobase.models.training.sentence_task import SentenceTask
from rheobase.models.training.step import MicroBatch, gradient, require_able
from rheobase.models.training.task import Task
from rheobase.models.training.tensorboard import board, writer
from rheobase.spiking.errors import ConfigError, FormatError, RheobaseError

AnyCorpus = Corpus | LabelledCorpus | EventCorpus
LOG_EVERY = 20


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to 0 at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def make_optimiser(model, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and thresholds alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def make_compression(model, config: RunConfig) -> Compression:
    """The pruning and the rounding that a configuration asks for."""
    return Compression(config.prune, config.quantise, model, config.train.steps)


def start(folder: str | Path, config: RunConfig, *, quiet: bool | None = None) -> Run:
    """Train a new run to its end; `config` is saved with it. quiet=None shows progress on a terminal only.

    Under torchrun all its processes call this, and rank 0 alone writes.
    """
    run, t = Run.vacant(folder), config.train
    with joined(t.device, t.accumulate) as ranks:
        corpus = config.corpus()
        tokenizer = None if config.sees else corpus.tokenizer
        config = config.fitted(tokenizer)
        rehearse(config, corpus, ranks)
        with threads(t.threads):
            task, model = prepare(config, corpus, ranks)
            task.begin(model)
            ranks.require_same("settings and texts", _given(config, corpus))  # and each has seen the folder vacant
            if ranks.first:
                run.folder.mkdir(parents=True, exist_ok=True)
            with _alone(run, ranks):
                if ranks.first:
                    run = Run.create(folder, config, tokenizer)
                return _train(run, config, corpus, task, model, ranks, quiet)


def resume(folder: str | Path, *, quiet: bool | None = None) -> Run:
    """Go on from the newest checkpoint of a run, or from its first step if it has none; its own config decides."""
    run = Run.open(folder)
    if run.shipped:
        raise ConfigError(folder, "a run of your own", "a model of the package", "train a new one with --out")
    config, t = run.config, run.config.train
    with joined(t.device, t.accumulate) as ranks, threads(t.threads), _alone(run, ranks):
        corpus = config.corpus(None if config.sees else run.tokenizer())
        task, model = prepare(config, corpus, ranks)
        ranks.require_same("settings and texts", _given(config, corpus))
        if not any(run.checkpoints.glob("step-*.ckpt")):
            task.begin(model)
        return _train(run, config, corpus, task, model, ranks, quiet)


def _given(config: RunConfig, corpus: AnyCorpus) -> list:
    """What every rank must be given alike; where its files lie and its threads may differ."""
    train = config.to_table()["train"] | {"threads": None}
    return [config.fixed() | {"train": train}, corpus.digest, teacher_digest(config.teacher)]


def _alone(run: Run, ranks: Ranks):
    """`alone` in a run's folder, where the first rank is the one that writes."""
    return alone(run.folder, run.log_path) if ranks.first else contextlib.nullcontext()


def prepare(config: RunConfig, corpus: AnyCorpus, ranks: Ranks | None = None):
    """The task and the new model of a configuration; raises what a training would, and writes nothing."""
    if ranks is None:
        with joined(config.train.device, config.train.accumulate) as ranks:
            return prepare(config, corpus, ranks)
    if config.train.tensorboard:
        writer()
    config = replace(config, train=replace(config.train, device=ranks.device))
    torch.manual_seed(config.train.seed)
    model = _build(config).to(ranks.device).train()
    require_able(config, model)
    make = EventTask if config.sees else SentenceTask if config.classifies else LanguageTask
    return make(config, corpus, model, ranks), model


def _build(config: RunConfig):
    """A new model of the type of number that it is trained in; raises ConfigError where it is too large to make."""
    try:
        model = config.build()
    except (RuntimeError, OverflowError, MemoryError) as error:
        got = f"{' '.join(str(error).split())}"[:200] or "no memory"
        raise ConfigError("model", "sizes for which this machine has memory", got, "lower them") from None
    return model.double() if config.train.precision == "float64" else model


@contextlib.contextmanager
def threads(n: int | None):
    """Use n CPU threads inside the block, or as many as before if None."""
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rehearse(config: RunConfig, corpus: AnyCorpus, ranks: Ranks | None = None) -> None:
    """Everything that a training does, once, on little data; raises what it would, and writes nothing.

    raises  ConfigError: settings with which a first step fails
    """
    task, model = prepare(config, corpus, ranks)
    try:
        make_optimiser(model, config.train)
        make_compression(model, config)
        task.rehearse(model)
    except RheobaseError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ConfigError("train", "settings that can be trained", str(error).splitlines()[0], "mend them") from None


def _train(run: Run, config: RunConfig, corpus: AnyCorpus, task: Task, model, ranks: Ranks, quiet: bool | None) -> Run:
    """From the newest checkpoint, if there is one, to the end."""
    t = config.train
    whole = ranks.wrap(MicroBatch(task, model, t.recompute, t.compile), model, t.sharding)
    optimiser, compression = make_optimiser(model, t), make_compression(model, config)
    teacher = teacher_digest(config.teacher)
    step, best, elapsed, log_bytes = 0, None, 0.0, 0
    newest = ranks.share(newest_checkpoint(run.checkpoints) if ranks.first else None)
    if newest:
        saved = load_checkpoint(newest)
        _same(run, "config", _settings(saved, newest), config.fixed())
        _same(run, "text", saved.get("text_sha256"), corpus.digest)
        _same(run, "teacher", saved.get("teacher_sha256", teacher), teacher)
        try:
            sharding.load(model, optimiser, saved["model"], saved["optimiser"])
            torch.set_rng_state(saved["torch_rng"])
            if saved["cuda_rng"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(saved["cuda_rng"][0], ranks.device)
            step, best, elapsed, log_bytes = (saved[k] for k in ("step", "best", "elapsed_s", "log_bytes"))
            task.carry(saved["task"], model)
            compression.carry(saved["compression"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise FormatError(newest, "a checkpoint of this run", str(error).splitlines()[0], "delete it") from None

    first, began, meter = step + 1, time.monotonic() - elapsed, Meter(model, ranks.device, t.precision, ranks.world)
    bar = _progress(t.steps, step, quiet if ranks.first else True, run.folder.name)
    model.advance(step / t.steps)
    shown_on = board(run, log_bytes) if ranks.first else contextlib.nullcontext()
    with shown_on as show, Log(run.log_path if ranks.first else None, log_bytes, show) as log:
        while step < t.steps:
            shows = (step + 1) % LOG_EVERY == 0 or step + 1 == t.steps
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, t)
            compression.begin(step)
            optimiser.zero_grad()
            with compression.applied(step):
                shown, rates, tokens = gradient(whole, model, ranks, step, t, shows)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), t.clip)
            optimiser.step()
            model.project_()
            compression.project_()
            step += 1
            model.advance(step / t.steps)
            meter.seen += tokens
            bar.update()
            if shows:
                shown, norm = ranks.mean(shown).item(), sharding.whole(norm).item()
                if not math.isfinite(shown):
                    raise RheobaseError(
                        f"{run.folder} step {step}", "a finite loss", str(shown), "lower train.learning_rate"
                    )
                rates, figures = [ranks.mean(r).item() for r in rates], meter.read()
                log.write(
                    step=step,
                    **{task.measure: shown},
                    learning_rate=learning_rate(step - 1, t),
                    gradient_norm=norm,
                    rates=rates,
                    ranks=ranks.world,
                    tokens_a_step=tokens,
                    **figures,
                    elapsed_s=time.monotonic() - began,
                )
                rate = f" {100 * sum(rates) / len(rates):.0f}% active" if rates else ""
                speed = f"{figures['tokens_per_s'] / 1000:.1f}k {task.unit}s/s"
                bar.set_postfix_str(f"{shown:.3f} {task.label}{rate} {speed}")
            elif step == first:
                meter.restart()  # kernels were compiled meanwhile
            if step % t.evaluate_every == 0 or step == t.steps:
                with compression.applied(step - 1):  # as in the update that was just made
                    look, sparsity = task.look(model), compression.sparsity()
                    weights = sharding.whole(model.state_dict(), ranks.first)
                    weights = {k: v.detach().clone() for k, v in weights.items()} if ranks.first else None
                valid, rank = task.figure(look), task.rank(look)
                log.write(
                    step=step,
                    valid=valid,
                    rates=look.rates,
                    dead=look.dead,
                    saturated=look.saturated,
                    sparsity=sparsity.layers,
                )
                if not all(map(math.isfinite, rank)):
                    where, got = f"{run.folder} step {step}", str(rank)
                    raise RheobaseError(where, "a finite validation loss", got, "lower train.learning_rate")
                complete = model.complete and compression.complete(step)
                if complete and (best is None or rank < best["rank"]):
                    best = {"step": step, "rank": rank, "model": weights}
                meter.restart()
            if step % t.checkpoint_every == 0 or step == t.steps:
                checkpoint = {
                    "step": step,
                    "config": json.dumps(config.fixed()),
                    "text_sha256": corpus.digest,
                    "teacher_sha256": teacher,
                    "model": sharding.whole(model.state_dict(), ranks.first),
                    "optimiser": sharding.whole(optimiser.state_dict(), ranks.first),
                    "task": task.carried(),
                    "compression": compression.carried(),
                    "torch_rng": torch.get_rng_state(),
                    "cuda_rng": [torch.cuda.get_rng_state(ranks.device)] if "cuda" in ranks.device else [],
                    "best": best,
                    "elapsed_s": time.monotonic() - began,
                    "log_bytes": log.synced(),
                }
                if ranks.first:
                    save_checkpoint(run.checkpoints, step, checkpoint)
                meter.restart()
    bar.close()
    if best is None:
        raise FormatError(run.folder, "a run with at least one step to do", "none", "raise train.steps")
    if not ranks.first:
        return run
    if t.sharding == "fsdp":
        model = _build(config)
        compression = make_compression(model, config)
    model.load_state_dict(best["model"])
    model.eval().cpu().save_pretrained(run.model_path)
    final = task.look(model.to(ranks.device))
    seconds = time.monotonic() - began
    weights = run.weights()
    run.add_metrics(
        fresh=run.metrics().get("weights_sha256") != weights,
        text_sha256=corpus.digest,
        weights_sha256=weights,
        valid=final,
        best_step=best["step"],
        parameters=model.n_parameters,
        sparsity=compression.sparsity(),
        train_seconds=seconds,
    )
    return run


def _settings(saved: dict, where: Path) -> dict:
    """What a checkpoint says of its configuration, as today's `fixed` says it."""
    try:
        return RunConfig.from_table(json.loads(saved["config"]), str(where)).fixed()
    except (KeyError, ValueError) as error:
        raise FormatError(where, "a checkpoint of this run", str(error).splitlines()[0], "delete it") from None


def _same(run: Run, what: str, saved, now) -> None:
    if saved != now:
        wanted = f"the {what} that the checkpoint was trained with"
        may = f"only where files lie and {', '.join(FREE)} may change"
        raise ConfigError(run.config_path, wanted, "another", f"put it back; {may}")


def _progress(total, done, quiet, name):
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc=name, unit="step", disable=quiet, dynamic_ncols=True, leave=False)

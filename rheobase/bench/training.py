"""Training steps of SpikeGPT: forward, backward, clipping and fused AdamW; tokens a second, and memory on a GPU."""

from functools import partial

import torch
import torch.nn.functional as F

from rheobase.bench import Case, Setting, tried
from rheobase.bench.ops import wanting
from rheobase.models import RWKV4, RWKV4Config, SpikeGPT, SpikeGPTConfig

SIZES = {
    "cpu": {"SpikeGPT 4 x 256": ({"embedding": 256, "depth": 4}, 16, 128)},
    "cuda": {
        "SpikeGPT 12 x 512": ({"embedding": 512, "depth": 12}, 32, 1024),
        "SpikeGPT 18 x 768": ({"embedding": 768, "depth": 18, "vocabulary": 50277}, 12, 1024),
    },
}
SMALL = {"SpikeGPT 1 x 16": ({"embedding": 16, "depth": 1}, 2, 16)}


def steps(setting: Setting) -> list[Case]:
    """Both placements by our kernels, the reference form by its loops too, and RWKV-4 of the same shape."""
    sizes = SMALL if setting.small else SIZES[setting.device]
    return [_case(name, *size, setting) for name, size in sizes.items()]


def _case(name: str, sizes: dict, batch: int, length: int, setting: Setting) -> Case:
    tokens = torch.randint(sizes.get("vocabulary", 256), (batch, length + 1), device=setting.device)
    cuda = setting.device == "cuda"
    models = {
        "reference form": lambda: SpikeGPT(SpikeGPTConfig(**sizes)),
        "reference form, loops": lambda: SpikeGPT(SpikeGPTConfig(**sizes)),
        "spike-fed": lambda: SpikeGPT(SpikeGPTConfig(**sizes, placement="spike_fed")),
        "RWKV-4": lambda: RWKV4(RWKV4Config(**sizes)),
    }
    runs, notes = {}, {}
    for way, make in models.items():
        held = torch.cuda.memory_allocated() if cuda else 0
        torch.manual_seed(0)
        run = training_step(make().to(setting.device), tokens)
        runs[way] = _looped(run) if way.endswith("loops") else run
        if cuda:
            notes |= tried({way: partial(_memory, runs[way], held)})[0]
    precision = "bfloat16 autocast" if cuda else "float32"
    return Case(f"training step, {name}", f"B{batch} T{length} {precision}", runs, {}, notes, tokens=batch * length)


def _memory(step, held: int) -> str:
    """What a step takes at its peak, the model's own included, beyond the bytes held before the model was made."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return f"{(torch.cuda.max_memory_allocated() - held) / 2**30:.1f} GiB"


def training_step(model, tokens: torch.Tensor):
    """One step of a model on its device, without a synchronisation with the host; bfloat16 products on a GPU."""
    cuda = tokens.is_cuda
    model.wake(tokens[:2, :-1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            logits, _ = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimiser.step()

    return step


def _looped(step):
    def run():
        with wanting("reference"):
            step()

    return run

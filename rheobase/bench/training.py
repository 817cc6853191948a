"""Training steps of SpikeGPT: forward, backward, clipping and fused AdamW; tokens a second, and memory on a GPU."""

from functools import partial

import torch

from rheobase.bench import Case, Setting, tried
from rheobase.bench.ops import by_reference
from rheobase.models import RWKV4, RWKV4Config, SpikeGPT, SpikeGPTConfig
from rheobase.models.training.objective import text_loss
from rheobase.models.training.step import compile_stages

SIZES = {
    "cpu": {"SpikeGPT 4 x 256": ({"embedding": 256, "depth": 4}, 16, 128)},
    "cuda": {
        "SpikeGPT 12 x 512": ({"embedding": 512, "depth": 12}, 32, 1024),
        "SpikeGPT 18 x 768": ({"embedding": 768, "depth": 18, "vocabulary": 50277}, 12, 1024),
    },
}
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,  # A100 data sheet, 2021, as the next three
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,  # H100 data sheet, 2023, as the next: half of what it gives with sparsity
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,  # H200 data sheet, 2023
}
"""a whole device's name (a slice by MIG, or an NVL board, has another) -> operations a second of dense products in
bfloat16, by its maker"""
SMALL = {"SpikeGPT 1 x 16": ({"embedding": 16, "depth": 1}, 2, 16)}


def steps(setting: Setting) -> list[Case]:
    """Both placements by our kernels, on a CPU the reference form by its loops too, and RWKV-4 of the same shape; on a
    GPU, or where asked for, the reference form compiled goes first."""
    sizes = SMALL if setting.small else SIZES[setting.device]
    return [_case(name, *size, setting) for name, size in sizes.items()]


def _case(name: str, sizes: dict, batch: int, length: int, setting: Setting) -> Case:
    tokens = torch.randint(sizes.get("vocabulary", 256), (batch, length + 1), device=setting.device)
    cuda = setting.device == "cuda"
    compiled = {"reference form, compiled": lambda: SpikeGPT(SpikeGPTConfig(**sizes))}
    models = (compiled if cuda or setting.compile else {}) | {
        "reference form": lambda: SpikeGPT(SpikeGPTConfig(**sizes)),
        "reference form, loops": lambda: SpikeGPT(SpikeGPTConfig(**sizes)),
        "spike-fed": lambda: SpikeGPT(SpikeGPTConfig(**sizes, placement="spike_fed")),
        "RWKV-4": lambda: RWKV4(RWKV4Config(**sizes)),
    }
    runs, notes, absent = {}, {}, {}
    if cuda and not setting.small:
        del models["reference form, loops"]
        absent["reference form, loops"] = "over a million launches a step"
    for way, make in models.items():
        held = torch.cuda.memory_allocated() if cuda else 0
        torch.manual_seed(0)
        model = make().to(setting.device)
        run = training_step(model, tokens, way.endswith("compiled"))
        run = by_reference(run) if way.endswith("loops") else run
        if cuda:
            noted, refused = tried({way: partial(_memory, run, held)})
            notes |= noted
            absent |= refused
        if way not in absent:
            runs[way] = run
    precision = "bfloat16 autocast" if cuda else "float32"
    peak = PEAKS.get(torch.cuda.get_device_name(), 0) if cuda else 0
    weights = sum(model.get_parameter(product).numel() for product in model.products())  # all ways have the same
    peak_ms = 6e3 * weights * batch * length / peak if peak else 0.0
    size = f"B{batch} T{length} {precision}"
    return Case(f"training step, {name}", size, runs, absent, notes, tokens=batch * length, peak_ms=peak_ms)


def _memory(step, held: int) -> str:
    """What a step takes at its peak, the model's own included, beyond the bytes held before the model was made."""
    step()
    torch.cuda.reset_peak_memory_stats()
    step()  # the first has what a compiler took
    return f"{(torch.cuda.max_memory_allocated() - held) / 2**30:.1f} GiB"


def training_step(model, tokens: torch.Tensor, compiled: bool = False):
    """One step of a model on its device, without a synchronisation with the host; bfloat16 products on a GPU.

    compiled  as `[train] compile = true` does
    """
    cuda = tokens.is_cuda
    model.wake(tokens[:2, :-1])
    if compiled:
        compile_stages(model)
    loss_of = torch.compile(text_loss, fullgraph=True, dynamic=False) if compiled else text_loss
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            logits, _, runs = model.run(tokens[:, :-1])
            loss, penalty = loss_of(model, logits, tokens[:, 1:], runs)
        optimiser.zero_grad()
        (loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimiser.step()

    return step

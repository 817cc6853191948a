"""Small images of every kind with numbers drawn at random, for the firmware's self-test and for tests."""

import numpy as np

from rheobase.backends.exporters.spinnaker2 import arithmetic as ints
from rheobase.backends.exporters.spinnaker2 import arithmetic_rwkv as rwkv
from rheobase.backends.exporters.spinnaker2 import products
from rheobase.backends.exporters.spinnaker2.image import EGRU, EMBEDDING, PROGRAM, Image, key
from rheobase.backends.exporters.spinnaker2.machine import Machine
from rheobase.backends.exporters.spinnaker2.partition import head_image
from rheobase.backends.exporters.spinnaker2.program import GRADED, RESETS, TERNARY, Instruction, instruction


def random_machine(
    seed: int, *, extreme: bool = False, density: float = 1.0, zoneout: int = 0
) -> tuple[Machine, list[tuple[str, Image]]]:
    """PEs of an embedding, two layers of two slices and a head, numbers at random or at their ends; it records."""
    rng = np.random.default_rng(seed)
    vocabulary, width, units = 7, 5, (6, 4)

    def weights(rows, columns):
        w = rng.choice([-128, 127], (rows, columns)) if extreme else rng.integers(-128, 128, (rows, columns))
        return np.where(rng.random((rows, columns)) < density, w, 0)

    def named(port, weight, columns):
        shift = rng.choice([1, 30], columns) if extreme else rng.integers(4, 12, columns)
        bias = rng.choice([-(2**29), 0, 2**29], columns) if extreme else rng.integers(-(2**20), 2**20, columns)
        made = {f"{name}_{port}": array for name, array in products.pack(weight).items()}
        return made | {f"shift_{port}": shift, f"bias_{port}": bias}

    table = {"exponent": rng.integers(0, 9, vocabulary)} | products.pack(weights(vocabulary, width))
    fields = {"layer": 0, "slice": 0, "unit_lo": 0, "units": vocabulary, "width": width, "x_frac": 8}
    pes = [("embedding", Image.of(EMBEDDING, fields, table))]
    inputs, before = width, [(0, width)]
    for layer, n in enumerate(units):
        slices = [(0, n // 2 - 1), (n // 2 - 1, n)]
        keys = [[key(layer, s), lo, hi - lo, 0] for s, (lo, hi) in enumerate(before)]
        keys += [[key(layer + 1, s), lo, hi - lo, 1] for s, (lo, hi) in enumerate(slices)]
        for s, (lo, hi) in enumerate(slices):
            own, columns = hi - lo, 3 * (hi - lo)
            regions = {"cell": np.zeros(own), "accumulators": np.zeros(2 * columns), "keys": np.array(keys)}
            regions["thr"] = rng.choice([0, 1, ints.ONE], own) if extreme else rng.integers(0, ints.ONE // 4, own)
            regions |= named("a", weights(inputs, columns), columns) | named("q", weights(n, columns), columns)
            regions |= {"sigmoid": ints.sigmoid_table(), "tanh": ints.tanh_table()}
            fields = {"layer": layer, "slice": s, "unit_lo": lo, "units": own, "inputs": inputs}
            fields |= {"layer_units": n, "listens": len(keys), "zoneout": zoneout}
            pes.append((f"layer {layer}.{s}", Image.of(EGRU, fields, regions)))
        inputs, before = n, slices
    keys = [[key(2, s), lo, hi - lo, 0] for s, (lo, hi) in enumerate(before)]
    place = {"layer": 2, "slice": 0, "unit_lo": 0}
    head = head_image(place, weights(4, vocabulary), rng.integers(-99, 99, vocabulary), np.full(vocabulary, 3), keys)
    return Machine(None, [*pes, ("head", head)], record=True), [*pes, ("head", head)]


def random_element(seed: int, n: int = 5, extreme: bool = False) -> tuple[Image, list[Instruction]]:
    """One PE that runs every op on numbers drawn at random within their formats."""
    rng = np.random.default_rng(seed)

    def draw(low, high, *size):
        ends = rng.choice([low, high - 1], size)
        return ends if extreme else np.where(rng.random(size) < 0.2, ends, rng.integers(low, high, size))

    small = draw(-(2**14), 2**14, 3, n)
    leak = draw(0, 2**14 + 1, n)
    factors = np.concatenate(
        [
            draw(-(2**15), 2**15, 1, n),
            draw(-(2**29), 2**29, 1, n),
            small[:2],
            draw(-(2**29), 2**29, 1, n),
            np.stack([leak, 2**14 - leak, draw(-9, 9, n), draw(0, 2**15, n), draw(0, 2**15, n)]),
            draw(0, 2**28, 1, n),
            draw(-(2**28), 2**28, 1, n),
        ]
    )
    vectors, flags = 1, (0, RESETS, TERNARY, RESETS | TERNARY | GRADED, GRADED)
    program = [
        instruction("slice", out=0, port=1),
        instruction("norm", out=1, port=1, factor=0, s0=int(draw(9, 18)), s1=1),
        instruction("product", out=2, port=0, s0=1),
        instruction("product", out=3, port=0, s0=0),
        instruction("mix", out=4, a=0, b=1, factor=2, s0=int(draw(12, 17))),
        instruction("sigmoid", out=5, a=2, s0=int(draw(-3, 3))),
        instruction("squared_relu", out=6, a=1, s0=int(draw(10, 18))),
        instruction("multiply", out=7, a=4, b=5, s0=14),
        instruction("add", out=8, a=7, b=1, s0=int(draw(0, 8)), s1=int(draw(0, 8)), s2=int(draw(0, 8))),
        *(instruction("lif", out=9, a=4, b=10 + i, factor=5, s0=7, s1=flag) for i, flag in enumerate(flags)),
        instruction("wkv", out=15, a=0, b=1, c=16, d=17, factor=10, s0=int(draw(7, 17)), s1=18),
        instruction("spike", out=19, a=8),
        instruction("move", out=20, a=15),
        instruction("send", a=9, s0=2),
        instruction("send", a=15, s0=3),
    ]
    initial = np.zeros(21)
    initial[18] = rwkv.START
    weight = draw(-128, 128, 7, n)
    regions = {
        "products": np.array([[7, 0, 0, 0, 0xFFFFFFFF]]),
        "vectors": np.array([[n + 3, 0]]),
        "gathered": np.zeros(n + 3),
        "bias": draw(-(2**20), 2**20, 1, n),
        "shift": draw(-4, 12, 1, n),
        "accumulators": np.zeros((1, n)),
        "rows": [],
        "gaps": [],
        "weight": weight.reshape(-1),
        "factors": factors,
        "registers": np.zeros((21, n)),
        "initial": initial,
        "program": np.array(program),
        "sigmoid": ints.sigmoid_table(),
        "power": rwkv.power_table(),
        "keys": np.array([[key(0, 0), 0, 7, 0], [key(1, 0), 0, n + 3, 1]]),
    }
    fields = {"layer": 0, "slice": 0, "unit_lo": 2, "units": n, "products": 1, "vectors": vectors, "registers": 21}
    fields |= {"factors": len(factors), "instructions": len(program), "listens": 2}
    return Image.of(PROGRAM, fields, regions), program

"""Kernels that count what they do.

They say only what values decide: weight rows read, events sent, input rows that hold an event. All else follows from
the graph and the number of tokens, by the rules of `_counts.py`.
"""

from rheobase.backends.simulators._counts import RULES, Seen
from rheobase.backends.simulators._executor import Kernels
from rheobase.spiking.graph import Conv2d, EventGraph, Input, Linear, Node
from rheobase.spiking.tally import EVENT_KINDS, TRANSCENDENTALS, Counts, Tally


class Counting(Kernels):
    """`begin`, then what `saw` is told, then `tally`.

    What is told is integers, or arrays of no axes that nothing reads before `tally`: a GPU is not waited for.
    """

    def begin(self, graph: EventGraph) -> None:
        self.graph = graph
        self.seen: dict[str, dict] = {n.name: {} for n in graph.nodes if type(n.op) in RULES}
        self.kind = {n.name: {p: e.kind for p, e in graph.inputs_of(n.name).items()} for n in graph.nodes}
        self.size = max((array.itemsize for array in graph.arrays.values()), default=4)  # without arrays float32
        self.driven = {n.name for n in graph.nodes if self._by_events(n)}

    def _by_events(self, node: Node) -> bool:
        """Whether its input is what events bring and nothing else, so that a row of zeros is none."""
        if "x" not in self.kind[node.name]:
            return False
        source = self.graph.node(self.graph.inputs_of(node.name)["x"].source_node)
        products = isinstance(source.op, Linear | Conv2d) and "bias" not in source.arrays
        return products and self.kind[source.name]["x"] in EVENT_KINDS

    def count_nonzero(self, array):
        """How many elements are not zero."""
        raise NotImplementedError

    def integers(self, numbers: list) -> list[int]:
        """Numbers that `saw` was told, as integers."""
        return [int(number) for number in numbers]

    def saw(self, node: Node, **numbers) -> None:
        """Add to what is known of a node; numbers are fields of `Seen`."""
        entry = self.seen[node.name]
        for key, number in numbers.items():
            entry[key] = entry[key] + number if key in entry else number

    def saw_spikes(self, node: Node, x, s) -> None:
        """What a cell took and what it sent, each [.., n]."""
        self.saw(node, events=self.count_nonzero(s))
        if node.name in self.driven:
            self.saw(node, reached=self.count_nonzero(x.any(-1)))

    def tally(self, tokens: int) -> Tally:
        found = iter(self.integers([number for entry in self.seen.values() for number in entry.values()]))
        seen = {name: {key: next(found) for key in entry} for name, entry in self.seen.items()}
        counts = {name: self._counts(self.graph.node(name), tokens, seen[name]) for name in seen}
        unknown = {type(n.op).__name__ for n in self.graph.nodes if n.name not in seen and not isinstance(n.op, Input)}
        return Tally(tokens, counts, tuple(sorted(unknown)))

    def _counts(self, node: Node, tokens: int, seen: dict[str, int]) -> Counts:
        graph = self.graph
        width = {port: e.shape[0] for port, e in graph.inputs_of(node.name).items()}
        width |= {port: graph.shape_of(f"{node.name}.{port}")[0] for port in node.op.outputs}
        found = RULES[type(node.op)](Seen(node.op, graph.arrays_of(node), self.kind[node.name], width, tokens, **seen))
        plain = {key: n * self.size if key.endswith("_bytes") else n for key, n in found.items()}
        transcendentals = {key: plain.pop(key) for key in TRANSCENDENTALS if key in plain}
        return Counts(**plain, transcendentals=transcendentals)

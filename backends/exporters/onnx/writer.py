"""ONNX files of steps: QuantizeLinear and DequantizeLinear with powers of two, opset 17.

N items. Token inputs are int64 [N, 1], all others int8 [N, n]; outputs are float32 [N, m], each an integer times a
power of two.
"""

import importlib

import numpy as np

from rheobase.backends.exporters.onnx.fragments import Fragment
from rheobase.backends.exporters.onnx.steps import Step
from rheobase.spiking.errors import FormatError, UnsupportedError
from rheobase.spiking.graph import Embedding

OPSET, IR = 17, 8


def load_onnx():
    """The onnx package; raises UnsupportedError with the pip command where it is not there."""
    return _load("onnx")


def load_runtime():
    """The onnxruntime package; raises UnsupportedError with the pip command where it is not there."""
    return _load("onnxruntime")


def _load(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UnsupportedError(name, "the library", "none installed", 'pip install "rheobase[onnx]"') from None


class _File:
    """The nodes and initializers of one file."""

    def __init__(self):
        self.onnx = load_onnx()
        self.nodes, self.constants, self.read = [], {}, {}

    def constant(self, name: str, array) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def node(self, op: str, inputs, output: str, **attributes) -> str:
        self.nodes.append(self.onnx.helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def scale(self, name: str, frac) -> str:
        return self.constant(f"{name}.scale", np.asarray(2.0 ** -np.asarray(frac, np.float64), np.float32))

    def dequantised(self, quantised: str, frac, axis: int = 0) -> str:
        """DequantizeLinear of an int8 or an int32, whose zero is 0. (Said of int8 a channel: onnxruntime before 1.28
        takes one zero for all where none is said, and then refuses the product.)"""
        inputs = [quantised, self.scale(quantised, frac)]
        if np.ndim(frac) and self.constants[quantised].dtype == np.int8:
            inputs.append(self.constant(f"{quantised}.zero", np.zeros(np.shape(frac), np.int8)))
        return self.node("DequantizeLinear", inputs, f"{quantised}.float", **({"axis": axis} if np.ndim(frac) else {}))

    def rounded(self, value: str, frac: int) -> str:
        """A float32 as its reader has it: by int8 and back."""
        if value not in self.read:
            zero = self.constant("zero", np.int8(0))
            inputs = [value, self.scale(f"{value}.int8", frac), zero]
            self.read[value] = self.dequantised(self.node("QuantizeLinear", inputs, f"{value}.int8"), frac)
        return self.read[value]

    def array(self, step: Step, role: str, axis: int = 0) -> str:
        name = f"{step.node.name}.{role}"
        return self.dequantised(self.constant(name, step.arrays[role]), step.fracs[role], axis)


def _linear(file: _File, step: Step, x: str) -> None:
    product = file.node("MatMul", [x, file.array(step, "weight", axis=1)], f"{step.out}.product")
    file.node("Add", [product, file.array(step, "bias")], step.out)


def _conv2d(file: _File, step: Step, x: str) -> None:
    op = step.node.op
    image = _image(file, step, x, step.arrays["weight"].shape[1])
    inputs = [image, file.array(step, "weight"), file.array(step, "bias")]
    made = file.node("Conv", inputs, f"{step.out}.image", strides=[op.stride] * 2, pads=[op.padding] * 4)
    file.node("Flatten", [made], step.out)


def _maxpool2d(file: _File, step: Step, x: str) -> None:
    op = step.node.op
    image = _image(file, step, x, -1)
    made = file.node("MaxPool", [image], f"{step.out}.image", kernel_shape=[op.kernel] * 2, strides=[op.stride] * 2)
    file.node("Flatten", [made], step.out)


def _image(file: _File, step: Step, x: str, channels: int) -> str:
    shape = file.constant(f"{step.out}.shape", np.array([0, channels, *step.node.op.size], np.int64))
    return file.node("Reshape", [x, shape], f"{step.out}.read")


def _embedding(file: _File, step: Step, token: str) -> None:
    name = f"{step.node.name}.row"
    file.node("Gather", [file.constant(f"{step.node.name}.table", step.arrays["table"]), token], f"{name}.3d")
    shape = file.constant(f"{name}.shape", np.array([-1, step.arrays["table"].shape[1]], np.int64))
    row = file.node("Reshape", [f"{name}.3d", shape], name)
    file.node("DequantizeLinear", [row, file.scale(row, step.fracs["table"])], step.out)


def _relu(file: _File, step: Step, x: str) -> None:
    file.node("Relu", [x], step.out)


def _squaredrelu(file: _File, step: Step, x: str) -> None:
    above = file.node("Relu", [x], f"{step.out}.above")
    file.node("Mul", [above, above], step.out)


def _sigmoid(file: _File, step: Step, x: str) -> None:
    """Rounded at once: the function itself is the runtime's, its int8 is not."""
    value = file.node("Sigmoid", [x], f"{step.out}.exact")
    quantised = file.node(
        "QuantizeLinear",
        [value, file.scale(f"{step.out}.whole", step.frac), file.constant("zero", np.int8(0))],
        f"{step.out}.whole",
    )
    file.node("DequantizeLinear", [quantised, f"{step.out}.whole.scale"], step.out)


def _spike(file: _File, step: Step, x: str) -> None:
    fired = file.node("GreaterOrEqual", [x, file.constant("nought", np.float32(0))], f"{step.out}.fired")
    file.node("Cast", [fired], step.out, to=file.onnx.TensorProto.FLOAT)


def _multiply(file: _File, step: Step, a: str, b: str) -> None:
    file.node("Mul", [a, b], step.out)


def _add(file: _File, step: Step, a: str, b: str) -> None:
    file.node("Add", [a, b], step.out)


def _affine(file: _File, step: Step, x: str) -> None:
    scaled = file.node("Mul", [x, file.array(step, "scale")], f"{step.out}.scaled")
    file.node("Add", [scaled, file.array(step, "bias")], step.out)


def _mix(file: _File, step: Step, x: str, before: str) -> None:
    now = file.node("Mul", [x, file.array(step, "share")], f"{step.out}.now")
    then = file.node("Mul", [before, file.array(step, "rest")], f"{step.out}.then")
    both = file.node("Add", [now, then], f"{step.out}.both")
    file.node("Add", [both, file.array(step, "bias")], step.out)


_WRITE = {write.__name__[1:]: write for write in (
    _linear, _conv2d, _maxpool2d, _embedding, _relu, _squaredrelu, _sigmoid, _spike, _multiply, _add, _affine, _mix
)}  # fmt: skip


def onnx_bytes(fragment: Fragment, steps: list[Step], widths: dict[str, int], producer: str) -> bytes:
    """The file of a fragment.

    widths  n of every input and m of every output
    """
    file = _File()
    helper, types = file.onnx.helper, file.onnx.TensorProto
    tokens = {step.sources[0][0] for step in steps if isinstance(step.node.op, Embedding)}
    for step in steps:
        read = []
        for name, frac in step.sources:
            if name in fragment.inputs and name not in tokens and name not in file.read:
                file.read[name] = file.dequantised(name, frac)
            read.append(name if name in tokens else file.rounded(name, frac))
        _WRITE[step.kind](file, step, *read)
    inputs = [
        helper.make_tensor_value_info(name, types.INT64 if name in tokens else types.INT8, ["N", widths[name]])
        for name in fragment.inputs
    ]
    outputs = [helper.make_tensor_value_info(name, types.FLOAT, ["N", widths[name]]) for name in fragment.outputs]
    constants = [file.onnx.numpy_helper.from_array(array, name) for name, array in file.constants.items()]
    graph = helper.make_graph(file.nodes, "fragment", inputs, outputs, constants)
    model = helper.make_model(
        graph, producer_name=producer, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR
    )
    file.onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def run_onnx(data: bytes, feeds: dict[str, np.ndarray], where: object) -> dict[str, np.ndarray]:
    """What onnxruntime makes of a file, with its graph optimisation off: fused int8 kernels round otherwise.

    raises  FormatError: the file does not load, does not run, or names another file for its numbers
    """
    runtime, onnx = load_runtime(), load_onnx()
    try:
        elsewhere = _elsewhere(onnx.load_model_from_string(data))
    except Exception as error:  # protobuf's have no common class either
        raise FormatError(where, "a file in ONNX", f"{type(error).__name__}", "export it anew") from None
    if elsewhere:
        raise FormatError(where, "numbers of its own", "those of another file", "do not use it")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        quiet = {"enable_fallback": 0}  # which would print that it tries the same again
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"], **quiet)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # its errors have no common class that is public
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        told = str(error) or type(error).__name__  # some have no text
        raise FormatError(where, "a file that runs", told, "export it anew") from None


def _elsewhere(message) -> bool:
    """Whether a tensor anywhere in a protobuf message lies in another file."""
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.data_location or len(message.external_data))
    held = [(field, value) for field, value in message.ListFields() if field.type == field.TYPE_MESSAGE]
    each = (part for _, value in held for part in (value if hasattr(value, "append") else [value]))
    return any(_elsewhere(part) for part in each)

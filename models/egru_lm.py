"""The EGRU language model: recurrent layers that speak only when a unit crosses its threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rheobase.models._pretrained import fit_tensors, read_state_dict, require_finite
from rheobase.models._recurrent import Lowering, RecurrentConfig, RecurrentLM
from rheobase.spiking.errors import ConfigError, FormatError
from rheobase.spiking.graph import EGRUCell
from rheobase.spiking.neurons.egru import EGRU, restart_cell
from rheobase.spiking.ops.egru.reference import EGRUState
from rheobase.spiking.surrogates import Triangle


@dataclass(frozen=True, kw_only=True)
class EGRULMConfig(RecurrentConfig):
    """Sizes and regularisers of an EGRU language model."""

    thr_mean: float = 0.3
    """mean of the thresholds at the start"""
    gamma: float = 0.7
    """height of the triangle surrogate"""
    eps: float = 1.0
    """inverse half-width of the triangle surrogate"""
    zoneout: float = 0.0
    """probability that a unit keeps its cell for a step"""
    rate_target: float = 0.1
    """the mean firing that `rate_weight` pulls each layer towards"""
    rate_weight: float = 0.0
    """weight of the squared distance of each layer's mean firing from the target"""


def egru_lowering(zoneout: float) -> Lowering:
    """How a layer of `neurons.egru.EGRU` lowers."""
    return Lowering(
        cell=EGRUCell(zoneout),
        arrays={"thr": "thr"},
        kernels=(("kernel", "bias"), ("recurrent_kernel", "recurrent_bias")),
        transposed=False,
        gates=3,
        port="y",
    )


class EGRULM(RecurrentLM):
    """A language model of stacked EGRU layers.

    Source: Subramoney et al., ICLR 2023, appendix on language modelling; layers, tied decoder and dropconnect as
    there. The variational dropout's masks are [B, 1, H]; the published code's are [1, T, H], shared over the batch.

    call    logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]
    raises  ShapeError: tokens not [B, T] integers below V, or a state of another batch size or model
    """

    Config = EGRULMConfig
    name = "egru_lm"
    state_type = EGRUState
    training_settings = RecurrentLM.training_settings | {"thr_mean", "gamma", "eps", "rate_target", "rate_weight"}
    citations = (
        "@inproceedings{subramoney2023egru, title={Efficient recurrent architectures through activity sparsity and "
        "sparse back-propagation through time}, author={Subramoney, Anand and Nazeer, Khaleelulla Khan and "
        'Sch{\\"o}ne, Mark and Mayr, Christian and Kappel, David}, booktitle={ICLR}, year={2023}}',
    )

    def make_layers(self, config):
        widths = (config.embedding, *config.layers)
        return [
            EGRU(
                widths[i],
                widths[i + 1],
                Triangle(config.gamma, config.eps),
                config.zoneout,
                dropconnect=config.dropconnect,
                thr_mean=config.thr_mean,
            )
            for i in range(len(config.layers))
        ]

    def run_layer(self, index, x_BTH, state):
        trajectory, state = self.layers[index](x_BTH, state, whole=True)
        return trajectory.y, state, trajectory

    @property
    def needs_whole_means(self):
        return self.config.rate_weight > 0

    def penalty(self, runs):
        """rate_weight x sum over layers of (mean o - rate_target)^2; o carries the surrogate's gradient."""
        if not self.config.rate_weight:
            return 0.0
        return self.config.rate_weight * sum((self.pooled(run.o.mean()) - self.config.rate_target) ** 2 for run in runs)

    @property
    def event_layers(self):
        return tuple(f"layers.{i}" for i in range(len(self.layers)))

    def rates(self, runs):
        return [run.o.mean((0, 1)) for run in runs]

    def restart(self, state):
        """Each layer's c set to zero; y and trace are carried (`restart_cell`)."""
        return tuple(restart_cell(layer) for layer in state)

    def project_(self):
        for layer in self.layers:
            layer.project_()

    def lowering(self):
        return egru_lowering(self.config.zoneout)

    @classmethod
    def from_reference(
        cls, path_or_state_dict: str | Path | Mapping[str, Tensor], *, thresholds: str | None = None
    ) -> "EGRULM":
        """Read a checkpoint of the EvNN language model (weights only) and its key names.

        thresholds  "projected": thr itself, in [0, 1] (EvNN 0.2.0);  "logit": the stored number is the logit of
                    thr (the code of the ICLR paper);  None: "logit" if any stored number lies outside [0, 1]
        returns     the model in evaluation mode; sizes, projection, gamma and eps are read off the tensors
        raises      FormatError: a key is missing, unknown or of the wrong shape, a number is not finite, embedding and
                    decoder differ, or layers have different surrogates
        """
        if thresholds not in (None, "projected", "logit"):
            raise ConfigError("thresholds", "'projected', 'logit' or None", repr(thresholds), "name one of them")
        where, tensors = read_state_dict(path_or_state_dict)
        require_finite(tensors, where)

        def take(key: str, dims: int) -> Tensor:
            if key not in tensors:
                raise FormatError(where, f"the key {key!r}", "none", "give an EvNN language model's state_dict")
            if tensors[key].dim() != dims:
                got = f"shape {tuple(tensors[key].shape)}"
                raise FormatError(
                    f"{where}: {key}", f"{dims} dimensions", got, "give an EvNN language model's state_dict"
                )
            return tensors.pop(key)

        embedding = take("embeddings.weight", 2)
        if not torch.equal(take("decoder.decoder.weight", 2), embedding):
            raise FormatError(where, "a decoder tied to the embedding", "two different tables", "use a tied model")
        out = {"embedding.weight": embedding, "decoder.bias": take("decoder.decoder.bias", 1)}
        depth = max(1, len({key.split(".")[1] for key in tensors if key.startswith("rnns.")}))
        surrogates = []
        for i in range(depth):
            for part, dims in (("kernel", 2), ("recurrent_kernel", 2), ("bias", 1), ("recurrent_bias", 1), ("thr", 1)):
                out[f"layers.{i}.{part}"] = take(f"rnns.{i}.{part}", dims)
            found = {}
            for key, name in (("dampening_factor", "gamma"), ("pseudo_derivative_support", "eps")):
                number = tensors.pop(f"rnns.{i}.{key}", None)
                if number is not None and number.numel() != 1:
                    raise FormatError(f"{where}: rnns.{i}.{key}", "one number", f"{number.numel()}", "mend the file")
                if number is not None:
                    found[name] = number.item()
            surrogates.append(found)
            tensors.pop(f"rnns.{i}._max_norm", None)
        if any(found != surrogates[0] for found in surrogates):
            raise FormatError(
                where, "one surrogate for all layers", f"{surrogates}", "make the layers' constants equal"
            )
        names = [f"layers.{i}.thr" for i in range(depth)]
        outside = any(((out[n] < 0) | (out[n] > 1)).any() for n in names)
        if thresholds == "projected" and outside:
            raise FormatError(f"{where}: thr", "values in [0, 1]", "others", 'try thresholds="logit"')
        if thresholds == "logit" or outside:
            out |= {n: torch.sigmoid(out[n]) for n in names}
        projection = "decoder.projection.weight" in tensors
        if projection:
            out |= {f"projection.{p}": take(f"decoder.projection.{p}", d) for p, d in (("weight", 2), ("bias", 1))}
        if tensors:
            raise FormatError(where, "no other keys", f"{sorted(tensors)}", "give an EvNN language model's state_dict")
        config = EGRULMConfig(
            vocabulary=embedding.shape[0],
            embedding=embedding.shape[1],
            layers=tuple(out[f"layers.{i}.thr"].shape[0] for i in range(depth)),
            projection=projection,
            **surrogates[0],
        )
        model = cls(config)
        fit_tensors(model, out, where)
        return model.eval()


Config, Model = EGRULMConfig, EGRULM

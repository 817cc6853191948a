"""RWKV-4, the non-spiking twin of SpikeGPT: the same blocks without neurons."""

from dataclasses import dataclass

from rheobase.models.spikegpt import SpikeGPT, SpikeGPTConfig
from rheobase.spiking.errors import ConfigError, FormatError


@dataclass(frozen=True, kw_only=True)
class RWKV4Config(SpikeGPTConfig):
    """Sizes and settings of an RWKV-4; the parameters are those of a SpikeGPT of the same sizes, name by name."""

    placement: str = "continuous"
    binary_embedding: bool = False
    init: str = "original"
    """nothing fires, so nothing is woken"""


class RWKV4(SpikeGPT):
    """The language model of Peng et al., "RWKV: Reinventing RNNs for the Transformer era", arXiv 2305.13048.

    logits, state = model(tokens, state=None)     tokens [B, T] int64 -> logits [B, T, V]

    Weights start as torch's layers start, embeddings from N(0, 1) behind a LayerNorm.

    raises  as `SpikeGPT`;  ConfigError: another placement than "continuous"
    """

    Config = RWKV4Config
    name = "rwkv4"
    citations = (
        "@inproceedings{peng2023rwkv, title={{RWKV}: Reinventing {RNN}s for the transformer era}, author={Peng, Bo and "
        "others}, booktitle={Findings of EMNLP}, year={2023}, note={arXiv:2305.13048}}",
    )

    def __init__(self, config: RWKV4Config):
        if config.placement != "continuous":
            raise ConfigError("rwkv4 placement", "'continuous'", repr(config.placement), "use spikegpt")
        super().__init__(config)

    @classmethod
    def from_reference(cls, path_or_state_dict, *, binary_embedding: bool = False, say=None) -> "RWKV4":
        """As SpikeGPT's, for a file of RWKV-4, whose embedding never spikes.

        raises  FormatError: as there, or the first block mixes channels twice (ffnPre);  ConfigError: binary_embedding
        """
        if binary_embedding:
            raise ConfigError("rwkv4 binary_embedding", "False", "True", "use SpikeGPT.from_reference")
        return super().from_reference(path_or_state_dict, binary_embedding=binary_embedding, say=say)

    @classmethod
    def check_reference(cls, tensors, where):
        if any(key.startswith("blocks.0.ffnPre.") for key in tensors):
            raise FormatError(where, "an RWKV-4 whose blocks all mix time", "ffnPre in the first", "use another file")


Config, Model = RWKV4Config, RWKV4

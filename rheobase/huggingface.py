"""Any language model here as one of Hugging Face transformers: `generate`, `Trainer`, `AutoModelForCausalLM`.

Importing this module, which needs the extra `rheobase[transformers]`, registers both classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from rheobase.models._pretrained import LanguageModel
from rheobase.spiking import registry
from rheobase.spiking.config import from_table, to_table
from rheobase.spiking.errors import ConfigError, ShapeError, UnsupportedError


class RheobaseConfig(PretrainedConfig):
    """The configuration of a language model by its file's name and its settings' table."""

    model_type = "rheobase"

    def __init__(self, model: str = "egru_lm", settings: dict | None = None, **common):
        self.model, self.settings = model, dict(settings or {})
        super().__init__(**{"tie_word_embeddings": False, **common})

    def build(self) -> LanguageModel:
        """A new language model; raises ConfigError where the name or a setting is unknown."""
        kind = getattr(registry.get("rheobase.models", self.model), "Model", object)
        if not issubclass(kind, LanguageModel):
            raise ConfigError("model", "a language model, such as egru_lm", repr(self.model), "name one")
        return kind(from_table(kind.Config, self.settings, "settings"))


@dataclass
class RheobaseOutput(ModelOutput):
    """loss: of the labels;  logits [B, T, V];  state: what the next call carries on from."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: tuple | None = None


class RheobaseForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model in the clothes of transformers, for which its state is the cache.

    `generate` reads the prompt in one call and then one token a call, at constant cost. A row is computed as it would
    be alone: padding is refused, by an attention mask that is not all ones, since a state would see it. So are beams
    and assisted generation, which go back to an earlier token.
    """

    config_class = RheobaseConfig
    base_model_prefix = "model"
    _is_stateful = True

    def __init__(self, config: RheobaseConfig):
        super().__init__(config)
        with torch.device("cpu"):  # transformers asks for tensors without numbers, of which no first weights are made
            self.model = config.build()
        self.vocab_size = self.model.config.vocabulary
        self.post_init()

    @classmethod
    def of(cls, model: LanguageModel) -> "RheobaseForCausalLM":
        """A model with copies of another's weights, in its mode: `of(rheobase.load("runs/x"))`.

        raises  ConfigError: modules that its configuration does not make
        """
        wrapped = cls(RheobaseConfig(model=model.name, settings=to_table(model.config)))
        given, made = (
            {name: type(module).__name__ for name, module in m.named_modules()} for m in (model, wrapped.model)
        )
        for name in made | given:
            if given.get(name) != made.get(name):
                expected, got = (names.get(name, "none") for names in (made, given))
                remedy = "name the neuron in the configuration"
                raise ConfigError(f"RheobaseForCausalLM.of, {name}", expected, got, remedy)
        wrapped.to(next(model.parameters())).model.load_state_dict(model.state_dict())
        return wrapped.train(model.training)

    def _init_weights(self, module):
        """Models here make their own first weights."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: tuple | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **more,
    ) -> RheobaseOutput | tuple:
        """input_ids [B, T], state of an earlier call -> logits [B, T, V], state.

        labels   [B, T]: the loss is the mean cross-entropy of labels[:, 1:] by logits[:, :-1], -100 left out; over
                 `num_items_in_batch` instead of their number, if given
        raises   UnsupportedError: padding, or arguments that ask for what there is not
        """
        if asked := [name for name, value in more.items() if value is not None and value is not False]:
            raise UnsupportedError("rheobase in transformers", "input_ids", ", ".join(asked), "leave it out")
        if attention_mask is not None:
            fits = state is not None or attention_mask.shape == input_ids.shape  # later, it also covers what was read
            if not fits or not bool((attention_mask == 1).all()):
                remedy = "give rows of one length, or one row a call"
                raise UnsupportedError("attention_mask", "ones: no padding", "others", remedy)
        logits, state = self.model(input_ids, state)
        loss = None
        if labels is not None:
            if labels.shape != input_ids.shape:
                raise ShapeError("labels", f"{tuple(input_ids.shape)}", f"{tuple(labels.shape)}", "reshape them")
            how = "mean" if num_items_in_batch is None else "sum"
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=how)
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        out = RheobaseOutput(loss, logits, None if use_cache is False else state)
        return out if return_dict is not False else out.to_tuple()

    def prepare_inputs_for_generation(
        self, input_ids, state=None, carried=False, attention_mask=None, use_cache=None, **_
    ):
        """The whole prompt at first, then the last token alone, with the state that came before it."""
        tokens = input_ids[:, -1:] if carried else input_ids
        return {"input_ids": tokens, "state": state, "attention_mask": attention_mask, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        kept = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return kept | {"state": outputs.state, "carried": True} if outputs.state is not None else kept

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _get_logits_processor(self, generation_config, *args, **kwargs):
        if (generation_config.guidance_scale or 1) != 1:
            raise UnsupportedError("generate", "no guidance_scale", "one", "leave it out")
        return super()._get_logits_processor(generation_config, *args, **kwargs)

    def _beam_search(self, *args, **kwargs):
        raise UnsupportedError("generate", "num_beams = 1", "more", "sample, or take the likeliest token")


AutoConfig.register("rheobase", RheobaseConfig, exist_ok=True)
AutoModelForCausalLM.register(RheobaseConfig, RheobaseForCausalLM, exist_ok=True)

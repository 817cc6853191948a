"""Text out of a trained model."""

import torch

from rheobase.spiking.errors import ConfigError


@torch.no_grad()
def sample(model, prompt: bytes, length: int, *, temperature: float = 0.8, seed: int = 0) -> bytes:
    """Continue a prompt by `length` bytes, one at a time, carrying the model's state.

    temperature  divides the logits; 0 takes the likeliest byte
    raises       ConfigError: an empty prompt or a negative temperature
    """
    if not prompt:
        raise ConfigError("prompt", "at least one byte", "none", "give a prompt")
    if not 0 <= temperature < float("inf"):
        raise ConfigError("temperature", "0 or more", str(temperature), "choose for instance 0.8")
    generator = torch.Generator().manual_seed(seed)
    logits, state = model.eval()(torch.tensor([list(prompt)]))
    out = bytearray()
    for _ in range(length):
        last = logits[0, -1].double()
        token = (
            int(last.argmax())
            if temperature == 0
            else int(torch.multinomial(torch.softmax(last / temperature, 0), 1, generator=generator))
        )
        out.append(token)
        logits, state = model(torch.tensor([[token]]), state)
    return bytes(out)

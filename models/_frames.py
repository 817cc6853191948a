"""What the classifiers of event cameras' recordings share: the frames that they read, and what training asks of them.

B recordings, T frames, C channels, H and W the height and width of an image, N classes.
"""

from typing import Any

from torch import Tensor

from rheobase.models._pretrained import Pretrained, check_settings, check_state
from rheobase.spiking.errors import ConfigError, ShapeError
from rheobase.spiking.graph.images import LEVELS, check_levels
from rheobase.spiking.ops.egru.reference import EGRUTrajectory
from rheobase.spiking.tally import KINDS


def check_frame_settings(name: str, config, *others: tuple[str, str, bool]) -> None:
    """Refuse settings that cannot work: (setting, what it should be, whether it is), after those of all such models."""
    check_settings(name, config)
    for setting, wanted, right in (
        ("size", "a height and a width, at least 1", len(config.size) == 2 and min(config.size) >= 1),
        ("frames", f"one of {', '.join(KINDS)}", config.frames in KINDS),
        *others,
        ("classes", "at least 2", config.classes >= 2),
    ):
        if not right:
            raise ConfigError(f"{name} {setting}", wanted, repr(getattr(config, setting)), "mend it")


class FrameModel(Pretrained):
    """A classifier that reads frames, one a step, and gives logits at each; their mean over time is its answer.

    A subclass is one file, whose `Model` has what `needs` lists, `event_layers`, `trajectories`, and `lower`; its
    configuration has `channels`, `size`, `frames`, `classes`, `rate_target` and `rate_weight`.

    raises  ShapeError: frames not [B, T, C, H, W], BINARY or TERNARY ones with other numbers, or a state of another
            batch size or model
    """

    needs = (*Pretrained.needs, "run", "sent", "state_shapes")

    def forward(self, frames: Tensor, state=None) -> tuple[Tensor, tuple]:
        """frames [B, T, C, H, W] -> (logits [B, T, N], state); the state of an earlier call carries on."""
        logits, state, _ = self.run(frames, state)
        return logits, state

    def run(self, frames: Tensor, state=None) -> tuple[Tensor, tuple, Any]:
        """As `forward`, with what the layers did as a third result."""
        raise NotImplementedError(f"{type(self).__name__} does not run")

    def state_shapes(self, batch: int) -> list[tuple[tuple[int, ...], ...]]:
        """The shapes of each layer's state."""
        raise NotImplementedError(f"{type(self).__name__} has no state")

    def sent(self, runs) -> list[Tensor]:
        """What each event-based layer sent [B, T, n], from the third result of `run`."""
        raise NotImplementedError(f"{type(self).__name__} sends nothing")

    def trajectories(self, runs) -> list[EGRUTrajectory]:
        """What each EGRU did, from the third result of `run`."""
        raise NotImplementedError(f"{type(self).__name__} has no EGRU")

    def wake(self, frames: Tensor) -> None:
        """Prepare a new model on the first batch of its recordings; nothing to do unless a model says otherwise."""

    def rates(self, runs):
        return [(sent.detach() != 0).to(sent.dtype).mean((0, 1)) for sent in self.sent(runs)]

    def penalty(self, runs):
        """rate_weight x sum over EGRUs of (mean o - rate_target)^2; o carries the surrogate's gradient."""
        c = self.config
        if not c.rate_weight:
            return 0.0
        return c.rate_weight * sum((run.o.mean() - c.rate_target) ** 2 for run in self.trajectories(runs))

    def check(self, frames: Tensor, state) -> None:
        """Refuse frames of another size or kind, and states of another model or batch size."""
        where, size = f"{self.name} frames", (self.config.channels, *self.config.size)
        if frames.dim() != 5 or frames.shape[2:] != size or not frames.is_floating_point():
            got, remedy = f"{frames.dtype} {tuple(frames.shape)}", "reshape them, or call .float()"
            raise ShapeError(where, f"numbers [B, T, {', '.join(map(str, size))}]", got, remedy)
        if self.config.frames in LEVELS and frames.device.type == "cpu":
            check_levels(where, self.config.frames, frames.detach().double().numpy())
        check_state(self.name, state, self.state_shapes(frames.shape[0]))

"""What a training is for: the loop asks a task for each step's loss and for a look at the part held out."""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """What a step minimises."""

    whole: Tensor
    """what is differentiated"""
    shown: Tensor
    """what is logged, in the task's `measure`"""
    runs: object
    """what the layers did, as the model's `rates` takes it"""
    tokens: int
    """tokens that the model read"""


class Task:
    """A file's task has these; `models.training.loop` does the rest."""

    measure: str
    """the name under which a step's loss is logged"""
    label: str
    """the same, as the progress bar shows it"""
    unit: str
    """what a token is called"""

    def rehearse(self, model) -> None:
        """A loss on little data; raises what a first step would."""
        raise NotImplementedError(f"{type(self).__name__} does not rehearse")

    def compile(self, model) -> None:
        """Compile what of the loss is worth it; called once, after the rehearsal, where the training compiles."""

    def begin(self, model) -> None:
        """Prepare a new model, before its first step."""
        raise NotImplementedError(f"{type(self).__name__} does not begin")

    def loss(self, model, step: int, micro: int = 0) -> Loss:
        """The loss of a step, or of its micro-batch number `micro` on this rank; what is carried on is kept here."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def look(self, model):
        """An evaluation on the part that chooses, a dataclass with `rates`, `dead` and `saturated`."""
        raise NotImplementedError(f"{type(self).__name__} does not evaluate")

    def figure(self, look) -> float:
        """The figure of an evaluation that is logged."""
        raise NotImplementedError(f"{type(self).__name__} has no figure")

    def rank(self, look) -> list[float]:
        """Numbers that are less, the first that differs, where a model is better."""
        return [self.figure(look)]

    def carried(self) -> dict:
        """What a checkpoint must hold of the task, beside the step, to go on with any number of ranks."""
        return {}

    def carry(self, saved: dict, model) -> None:
        """Go on from what `carried` gave; raises KeyError or ValueError where it does not fit."""

"""A moving average of the LoRA's weights: smoother than the weights of any step, and often better."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diffusers.training_utils import EMAModel
from torch import nn

from tryon.config import TrainConfig


@dataclass(frozen=True)
class WeightAverage:
    """diffusers' exponential moving average of the parameters that are trained. After n steps its decay is
    n / (n + 9), until that exceeds --ema_decay: a short run's average is not one of its first steps."""

    ema: EMAModel
    parameters: list[nn.Parameter]

    def update(self) -> None:
        """Call it after each optimiser step."""
        self.ema.step(self.parameters)

    def restart(self, step: int) -> None:
        """Makes the parameters, as they are now, the average after `step` optimiser steps."""
        average = [parameter.data for parameter in self.parameters]  # which load_state_dict copies
        self.ema.load_state_dict({"shadow_params": average, "optimization_step": step})

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The parameters are the average meanwhile; their own values wait in the host's memory."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)


def make_average(config: TrainConfig, parameters: list[nn.Parameter]) -> WeightAverage | None:
    """The average that --ema_decay asks for, of the parameters as they are; None: it asks for none."""
    if not config.ema_decay:
        return None
    return WeightAverage(EMAModel(parameters, config.ema_decay, foreach=True), parameters)

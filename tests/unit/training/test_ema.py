"""The moving average of the weights: its formula, and that the weights themselves come back."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tryon.config import TrainConfig
from tryon.training.ema import make_average


def test_the_average_follows_its_formula_and_the_weights_come_back() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2, 2))]
    assert make_average(TrainConfig(), parameters) is None
    average = make_average(replace(TrainConfig(), ema_decay=0.25), parameters)
    generator = torch.Generator().manual_seed(0)
    expected = [torch.zeros(3), torch.ones(2, 2)]
    for decay in (0, 2 / 11, 0.25, 0.25):  # n / (n + 9) until it exceeds 0.25, and nothing of what was before
        for index, parameter in enumerate(parameters):
            parameter.data = torch.randn(parameter.shape, generator=generator)
            expected[index] = decay * expected[index] + (1 - decay) * parameter.data
        average.update()
    own = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(KeyError), average.in_place():
        torch.testing.assert_close([each.data for each in parameters], expected)
        raise KeyError
    assert all(map(torch.equal, parameters, own))

    # Gone on with from a checkpoint, it is where it was.
    other = make_average(replace(TrainConfig(), ema_decay=0.25), parameters)
    with average.in_place():
        other.restart(4)
    average.update()
    other.update()
    with average.in_place():
        known = [parameter.detach().clone() for parameter in parameters]
    with other.in_place():
        assert all(map(torch.equal, parameters, known))

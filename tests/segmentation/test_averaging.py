"""The average of the weights, by hand."""

import pytest
from torch import nn

from atlas_ray.segmentation.averaging import Average


def test_the_average_follows_fast_at_first_and_slowly_later() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = Average(network, 0.5)
    nn.init.constant_(network.weight, 1.0)
    average.update(network, 0)  # keeps 1/10
    assert average.network.weight.item() == pytest.approx(0.9)
    nn.init.constant_(network.weight, 2.0)
    average.update(network, 1000)  # keeps one half
    assert average.network.weight.item() == pytest.approx(1.45)
    assert network.weight.item() == 2


def test_counters_are_taken_over_as_they_are() -> None:
    network = nn.BatchNorm1d(1)
    average = Average(network, 0.9)
    network.num_batches_tracked += 7
    average.update(network, 0)
    assert average.network.num_batches_tracked == 7
    assert not average.network.training

"""Averages of weights, by hand."""

import pytest
import torch
from torch import nn

from atlas_ray.segmentation.averaging import Average, blended


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


def test_a_blend_lies_between_the_tuned_network_and_its_parent() -> None:
    tuned = {"weight": torch.tensor([4.0, 0.0]), "steps": torch.tensor(7)}
    parent = {"weight": torch.tensor([0.0, 2.0]), "steps": torch.tensor(3)}
    found = blended(tuned, parent, 0.25)
    assert found["weight"].tolist() == [3.0, 0.5]  # three quarters tuned, one quarter parent
    assert found["steps"] == 7
    assert tuned["weight"].tolist() == [4.0, 0.0]
    assert blended(tuned, parent, 0.0)["weight"].tolist() == [4.0, 0.0]

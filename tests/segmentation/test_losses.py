"""The partial-label loss: an organ a case has no ground truth for teaches nothing, in either direction."""

import math

import pytest
import torch

from atlas_ray.segmentation.losses import partial_label_loss, soft_dice_loss


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator, requires_grad=True)
    targets = (torch.rand(2, 3, 4, 4, 4, generator=generator) > 0.5).to(torch.uint8)
    return logits, targets


def test_an_unknown_organ_gets_exactly_zero_gradient() -> None:
    logits, targets = batch()
    known = torch.tensor([[True, False, True], [False, True, False]])
    partial_label_loss(logits, targets, known).backward()
    assert logits.grad is not None
    for b, k in ((0, 1), (1, 0), (1, 2)):
        assert torch.equal(logits.grad[b, k], torch.zeros(4, 4, 4))
    for b, k in ((0, 0), (0, 2), (1, 1)):
        assert logits.grad[b, k].abs().sum() > 0


def test_what_stands_in_an_unknown_target_does_not_matter() -> None:
    logits, targets = batch()
    known = torch.tensor([[True, False, True], [True, True, True]])
    other = targets.clone().float()
    other[0, 1] = float("nan")
    assert partial_label_loss(logits, targets, known) == partial_label_loss(logits, other, known)


def test_nothing_known_is_a_loss_of_zero_that_can_still_be_differentiated() -> None:
    logits, targets = batch()
    loss = partial_label_loss(logits, targets, torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_probabilities_on_one_positive_of_two_voxels() -> None:
    """p = [.5, .5], target [1, 0]: Dice 2 * .5 / (1 + 1) = .5, cross-entropy ln 2."""
    logits = torch.zeros(1, 1, 2, 1, 1)
    targets = torch.tensor([1, 0]).reshape(1, 1, 2, 1, 1)
    loss = partial_label_loss(logits, targets, torch.ones(1, 1, dtype=torch.bool))
    assert float(loss) == pytest.approx(0.5 + math.log(2), abs=1e-4)


def test_a_perfect_prediction_and_a_correctly_empty_one_cost_nothing() -> None:
    sure = torch.tensor([[40.0, -40.0], [-40.0, -40.0]])
    truth = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert float(soft_dice_loss(sure, truth)) == pytest.approx(0, abs=1e-4)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """In bfloat16 a sum of 100,000 small numbers stalls; the loss of a big patch must not."""
    logits = torch.full((1, 1, 48, 48, 48), 2.0)
    targets = torch.ones(1, 1, 48, 48, 48)
    known = torch.ones(1, 1, dtype=torch.bool)
    assert float(partial_label_loss(logits.bfloat16(), targets, known)) == pytest.approx(
        float(partial_label_loss(logits, targets, known))
    )

"""The partial-label loss: an organ a case has no ground truth for teaches nothing, in either direction."""

import math

import pytest
import torch

from atlas_ray.segmentation.losses import partial_label_loss, soft_dice_loss, supervised_loss


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
    assert soft_dice_loss(sure, truth).tolist() == pytest.approx([0, 0], abs=1e-4)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """In bfloat16 a sum of 100,000 small numbers stalls; the loss of a big patch must not."""
    logits = torch.full((1, 1, 48, 48, 48), 2.0)
    targets = torch.ones(1, 1, 48, 48, 48)
    known = torch.ones(1, 1, dtype=torch.bool)
    assert float(partial_label_loss(logits.bfloat16(), targets, known)) == pytest.approx(
        float(partial_label_loss(logits, targets, known))
    )


# --- weights --------------------------------------------------------------------------------------------------------


def test_trust_weighs_whole_organs() -> None:
    """Two organs of one voxel, p = .5: one is there (Dice loss 1 - 1/1.5 = 1/3), one is not (1). Weights 2 and .5."""
    targets = torch.tensor([1, 0]).reshape(1, 2, 1, 1, 1)
    loss = partial_label_loss(torch.zeros(1, 2, 1, 1, 1), targets, torch.tensor([[2.0, 0.5]]))
    assert float(loss) == pytest.approx((2 * (1 / 3 + math.log(2)) + 0.5 * (1 + math.log(2))) / 2, abs=1e-4)


def test_voxels_in_focus_count_more_and_only_for_organs_with_a_gain() -> None:
    """p = .5 in two voxels, target [1, 0], the first one counts three times: Dice 2 * 1.5 / (2 + 3), cross-entropy 2 ln 2."""
    logits, targets = torch.zeros(1, 2, 2, 1, 1), torch.tensor([1, 0, 1, 0]).reshape(1, 2, 2, 1, 1)
    focus = torch.tensor([1, 0], dtype=torch.uint8).reshape(1, 2, 1, 1)
    one = {"focus_BXYZ": focus, "gain_BK": torch.tensor([[3.0, 1.0]])}
    first = partial_label_loss(logits, targets, torch.tensor([[1.0, 0.0]]), **one)
    second = partial_label_loss(logits, targets, torch.tensor([[0.0, 1.0]]), **one)
    assert float(first) == pytest.approx(1 - 3 / 5 + 2 * math.log(2), abs=1e-4)
    assert float(second) == pytest.approx(0.5 + math.log(2), abs=1e-4)


def test_every_coarser_output_counts_half_as_much() -> None:
    """Fine output right, coarse output undecided: 2/3 of nothing and 1/3 of (Dice loss 1/3 + ln 2) on a single voxel of 1."""
    targets = torch.ones(1, 1, 2, 2, 2, dtype=torch.uint8)
    outputs = [torch.full((1, 1, 2, 2, 2), 40.0), torch.zeros(1, 1, 1, 1, 1)]
    plain = {"focus_BXYZ": torch.zeros(1, 2, 2, 2, dtype=torch.uint8), "gain_BK": torch.ones(1, 1)}
    loss = supervised_loss(outputs, targets, torch.ones(1, 1), **plain)
    assert float(loss) == pytest.approx((1 / 3 + math.log(2)) / 3, abs=1e-4)
    alone = supervised_loss(
        outputs[1:], torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1), **plain | {"focus_BXYZ": torch.zeros(1, 1, 1, 1)}
    )
    assert float(alone) == pytest.approx(1 / 3 + math.log(2), abs=1e-4)

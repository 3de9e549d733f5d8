"""Windows: every voxel covered, weights that add up to one, and the same mean as a plain loop and as MONAI's."""

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from atlas_ray.segmentation.windows import Windows, slide, window_starts, window_weights

Forward = Callable[[Tensor], Tensor]


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),
        (10, 4, 0.75, [0, 1, 2, 3, 4, 5, 6]),
        (10, 4, 0.0, [0, 3, 6]),  # three are needed, and then they share what is left over
        (11, 4, 0.5, [0, 2, 4, 5, 7]),
        (4, 4, 0.5, [0]),
        (3, 4, 0.5, [0]),
        (5, 4, 0.99, [0, 1]),  # a step is at least one voxel
        (256, 96, 0.5, [0, 40, 80, 120, 160]),
    ],
)
def test_windows_start_evenly_spread_and_end_flush(size: int, window: int, overlap: float, expected: list[int]) -> None:
    assert window_starts(size, window, overlap) == expected


@given(size=st.integers(1, 300), window=st.integers(1, 100), overlap=st.floats(0, 0.95))
def test_every_voxel_is_covered(size: int, window: int, overlap: float) -> None:
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - window)
    assert all(0 < later - earlier <= max(1, int(window * (1 - overlap))) for earlier, later in pairwise(starts))


@pytest.mark.parametrize("window", [(96, 96, 96), (16, 8, 12), (1, 5, 3)])
def test_weights_are_monai_gaussian(window: tuple[int, int, int]) -> None:
    theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125)
    assert np.allclose(window_weights(window), theirs, atol=1e-7)


def test_weights_are_largest_in_the_middle_and_never_below_a_thousandth() -> None:
    weights = window_weights((3, 3, 3))
    assert weights[1, 1, 1] == 1
    assert weights[0, 1, 1] == weights[1, 1, 2] == pytest.approx(np.exp(-32 / 9))  # one voxel of 3/8 sigma
    assert weights[0, 1, 2] == weights[0, 0, 0] == pytest.approx(1e-3)  # its square and cube are less


def test_windows_of_a_small_volume_are_padded_on_both_sides() -> None:
    windows = Windows.over((3, 8, 9), (4, 4, 4), 0.5)
    assert windows.padding == ((0, 1), (0, 0), (0, 0))
    assert len(windows) == 1 * 3 * 4


def together(forward: Forward, image: np.ndarray, window: tuple[int, int, int], overlap: float, batch: int = 2) -> np.ndarray:
    """All slices of `slide` one after another; the band is spoiled after every step, as its user may."""
    parts, end = [], 0
    windows = Windows.over(image.shape, window, overlap)
    with torch.inference_mode():
        for z, logits in slide(forward, image, windows, prepare=lambda hu: hu, batch=batch, device="cpu"):
            assert (z.start, z.stop) == (end, end + logits.shape[-1])
            end = z.stop
            parts.append(logits.clone())
            logits.fill_(torch.nan)
    return torch.cat(parts, dim=-1).numpy()


def image_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def opinionated(windows: Tensor) -> Tensor:
    """Logits that depend on where in the window a voxel lies and on what else the window shows: the worst case for averaging."""
    place = torch.linspace(-3, 3, windows[0].numel()).reshape(windows.shape[2:])
    shown = windows.mean(dim=(1, 2, 3, 4), keepdim=True)
    return torch.cat([windows * 4 + place, shown * 20 - place], dim=1)


def plain_mean(image: np.ndarray, window: tuple[int, int, int], overlap: float) -> np.ndarray:
    """One loop over all windows; numpy float64."""
    padding = [(max(0, w - n) // 2, max(0, w - n) - max(0, w - n) // 2) for n, w in zip(image.shape, window, strict=True)]
    padded = np.pad(image, padding)
    axes = [np.exp(-((np.arange(w) - (w - 1) / 2) ** 2) / (2 * (w / 8) ** 2)) for w in window]
    weight = np.maximum(np.einsum("x,y,z->xyz", *axes), 1e-3)
    total, count = np.zeros((2, *padded.shape)), np.zeros(padded.shape)
    for corner in product(*(window_starts(n, w, overlap) for n, w in zip(padded.shape, window, strict=True))):
        box = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
        total[(slice(None), *box)] += opinionated(torch.from_numpy(padded[box])[None, None])[0].numpy() * weight
        count[box] += weight
    inner = tuple(slice(before, before + n) for (before, _), n in zip(padding, image.shape, strict=True))
    return (total / count)[(slice(None), *inner)]


SHAPES = [(16, 16, 16), (17, 23, 40), (9, 30, 5), (31, 7, 19)]


@pytest.mark.parametrize("overlap", [0.75, 0.5, 0.25, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_streamed_sum_is_the_plain_weighted_mean(shape: tuple[int, ...], overlap: float) -> None:
    image = image_of(shape)
    window = (16, 8, 12)
    assert np.allclose(together(opinionated, image, window, overlap), plain_mean(image, window, overlap), atol=1e-4)


@pytest.mark.parametrize("overlap", [0.75, 0.5, 0.25, 0.0])
def test_equals_monai_where_its_windows_lie_alike(overlap: float) -> None:
    """Steps that divide, so that evenly spread is MONAI's grid too."""
    window, image = (16, 8, 16), image_of((40, 20, 64) if overlap else (48, 24, 64))  # 0.25: steps of 12, 6, 12
    theirs = sliding_window_inference(torch.from_numpy(image)[None, None], window, 2, opinionated, overlap, mode="gaussian")
    ours = torch.from_numpy(together(opinionated, image, window, overlap))
    assert (torch.sigmoid(ours) - torch.sigmoid(theirs[0])).abs().max() < 1e-5


@pytest.mark.parametrize("overlap", [0.75, 0.5])
def test_equals_monai_where_the_volume_is_smaller_than_a_window(overlap: float) -> None:
    window, image = (16, 8, 16), image_of((9, 20, 13))
    theirs = sliding_window_inference(torch.from_numpy(image)[None, None], window, 2, opinionated, overlap, mode="gaussian")
    ours = torch.from_numpy(together(opinionated, image, window, overlap))
    assert (torch.sigmoid(ours) - torch.sigmoid(theirs[0])).abs().max() < 1e-5


@pytest.mark.parametrize("overlap", [0.75, 0.5, 0.25, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_monai_gaussian_for_a_network_that_sees_voxels_alone(shape: tuple[int, ...], overlap: float) -> None:
    """Then it cannot matter where windows lie, only that everything is where it was."""

    def pointwise(windows: Tensor) -> Tensor:
        return torch.cat([windows * 8 - 4, 3 - windows * 5], dim=1)

    image, window = image_of(shape), (16, 8, 12)
    theirs = sliding_window_inference(torch.from_numpy(image)[None, None], window, 3, pointwise, overlap, mode="gaussian")
    assert np.allclose(together(pointwise, image, window, overlap, batch=3), theirs[0], atol=1e-5)


def test_a_convolution_agrees_with_monai_although_windows_lie_elsewhere() -> None:
    """Odd sizes. Windows differ only in the voxels at their faces, which weigh little wherever another window sees them better."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    image = torch.from_numpy(image_of((53, 49, 61)))[None, None]
    with torch.inference_mode():
        theirs = torch.sigmoid(sliding_window_inference(image, (32, 32, 32), 1, network, 0.5, mode="gaussian")[0])
    ours = torch.sigmoid(torch.from_numpy(together(network, image[0, 0].numpy(), (32, 32, 32), 0.5)))
    assert (ours - theirs).abs().mean() < 1 / 255


def test_batches_larger_than_a_row_change_nothing() -> None:
    image = image_of((20, 12, 30))
    one = together(opinionated, image, (16, 8, 12), 0.5, batch=1)
    assert np.allclose(together(opinionated, image, (16, 8, 12), 0.5, batch=1000), one, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.75, 0.5, 0.0])
def test_memory_order_of_the_answer_does_not_matter(overlap: float) -> None:
    def channels_last(windows: Tensor) -> Tensor:
        return opinionated(windows).contiguous(memory_format=torch.channels_last_3d)

    image = image_of((20, 12, 30))
    plain = together(opinionated, image, (16, 8, 12), overlap)
    assert np.allclose(together(channels_last, image, (16, 8, 12), overlap), plain, atol=1e-5)


def test_bfloat16_answers_are_summed_in_float32() -> None:
    """The mean of 256 and 258 is 257, which needs more bits than bfloat16 has."""
    answers = iter([256.0, 258.0])

    def answer(seen: Tensor) -> Tensor:
        return torch.full_like(seen, next(answers), dtype=torch.bfloat16)

    logits = together(answer, image_of((4, 4, 7)), (4, 4, 4), 0.25, batch=1)  # windows 0:4 and 3:7
    assert logits[0, 0, 0].tolist() == [256, 256, 256, 257, 258, 258, 258]

"""Winograd's convolution equals the direct one in double precision; what is folded into it equals the separate steps."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from atlas_ray.segmentation.winograd import Source, convolve, transform_weight


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 1, 1), (5, 9, 14), (12, 24, 20)])
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_direct_convolution_of_normalized_concatenated_sources(shape: tuple[int, int, int], threads: int) -> None:
    torch.manual_seed(0)
    voxels = int(np.prod(shape))
    maps = [torch.randn(voxels, channels) for channels in (8, 3)]
    scales, shifts = [torch.rand(m.shape[1]) + 0.5 for m in maps], [torch.randn(m.shape[1]) for m in maps]
    weight, bias = torch.randn(5, 11, 3, 3, 3), torch.randn(5)
    out = np.full((voxels, 5), np.nan, np.float32)

    sources = [Source(m.numpy(), a.numpy(), b.numpy(), 0.25) for m, a, b in zip(maps, scales, shifts, strict=True)]
    frequencies = torch.from_numpy(transform_weight(weight.numpy()))
    moments = convolve(sources, shape, frequencies, bias.numpy(), out, threads=threads)

    activated = [functional.leaky_relu(m.double() * a + b, 0.25) for m, a, b in zip(maps, scales, shifts, strict=True)]
    image = torch.cat(activated, dim=1).T.reshape(1, 11, *shape)
    expected = functional.conv3d(image, weight.double(), bias.double(), padding=1)[0].flatten(1).T
    assert np.abs(out - expected.numpy()).max() < 1e-5 * expected.abs().max()
    np.testing.assert_allclose(moments[0], expected.sum(0), rtol=1e-5, atol=1e-5 * float(expected.abs().sum()))
    np.testing.assert_allclose(moments[1], expected.square().sum(0), atol=1e-5 * float(expected.square().sum()))


def test_one_voxel_reaches_its_neighbors_only() -> None:
    """A delta at (5, 5, 5) and a kernel of ones: 3x3x3 ones around it."""
    image = np.zeros((11, 11, 11), np.float32)
    image[5, 5, 5] = 1
    expected = np.zeros_like(image)
    expected[4:7, 4:7, 4:7] = 1
    out = np.empty((11**3, 1), np.float32)
    source = Source(image.reshape(-1, 1), np.ones(1, np.float32), np.zeros(1, np.float32), 1.0)
    frequencies = torch.from_numpy(transform_weight(np.ones((1, 1, 3, 3, 3))))
    convolve([source], (11, 11, 11), frequencies, np.zeros(1, np.float32), out, threads=1)
    np.testing.assert_allclose(out.reshape(image.shape), expected, atol=1e-5)

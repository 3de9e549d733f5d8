"""The Triton kernels against their plain PyTorch form: the same voxel, bit and heat everywhere.

On a CUDA device these run compiled. Without one, tests/attention/test_triton_kernels.py runs this file in Triton's interpreter,
which is slow: shapes are a tile or two of 256 voxels.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a CUDA device; tests/attention/test_triton_kernels.py interprets these", allow_module_level=True)

import triton
import triton.language as tl

from atlas_ray.attention import packed, triton_kernels
from atlas_ray.attention.criteria import FaithfulAttention, Inconsistency, Overlap, PhysicalAttention, Uncertainty
from atlas_ray.organs import Organ, Organs

pytestmark = pytest.mark.gpu
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32]
FAITHFUL, PHYSICAL = FaithfulAttention(opening_voxels=1), PhysicalAttention()
ANISOTROPIC = (0.5, 1.0, 3.0)  # the physical opening is 2, 1 and 0 voxels to each side


def organ_set(count: int) -> Organs:
    """Organs "o0".. with label ids 200, 199, ..; the third is a tube, and the first two may touch."""
    return Organs(
        name=f"set of {count}",
        organs=tuple(
            Organ(
                name=f"o{k}",
                label_id=200 - k,
                color="#000000",
                overlap_partner=k != 2,
                may_touch={0: ("o1",), 1: ("o0",)}.get(k, ()) if count > 1 else (),
            )
            for k in range(count)
        ),
    )


def logits(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Smooth noise that the architectures share in part: agreement, dispute, overlap and far background."""
    generator = torch.Generator().manual_seed(seed)
    M, K, *grid = shape

    def smooth(channels: int) -> torch.Tensor:
        noise = torch.randn((channels, 1, *grid), generator=generator)
        return torch.nn.functional.avg_pool3d(noise, 3, 1, 1, count_include_pad=False).reshape(channels, *grid)

    shared, own = smooth(K), smooth(M * K).reshape(M, K, *grid)
    return 18 * shared + 6 * own - 2


def as_dtype(logits_: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype != torch.uint8:
        return logits_.to(dtype)
    return (255 * logits_.sigmoid()).round().to(torch.uint8)


def assert_same(values: torch.Tensor, mode, *, spacing=ANISOTROPIC, support=None, skip=frozenset()) -> packed.PackedAttention:
    M, K = values.shape[:2]
    values, support = values.to(DEVICE), None if support is None else support.to(DEVICE)
    rules = packed.byte_rules(mode, organs=organ_set(K), architectures=M, spacing=spacing, skip=skip, device=DEVICE)
    plain = packed.attend_plainly(values, rules, support_MXYZ=support)
    ours = triton_kernels.attend(values, rules, support_MXYZ=support)
    for field in plain.__dataclass_fields__:
        expected, found = getattr(plain, field), getattr(ours, field)
        assert found.dtype == expected.dtype, field
        assert found.shape == expected.shape, field
        differing = int((found != expected).sum())
        assert differing == 0, f"{field}: {differing} of {expected.numel()} differ"
    return ours


# --- levels ---------------------------------------------------------------------------------------------------------


@triton.jit
def _levels(values_ptr, result_ptr, bounds_ptr, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(result_ptr + at, triton_kernels._level(tl.load(values_ptr + at), bounds_ptr))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_logit_has_its_level(dtype: torch.dtype) -> None:
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)  # both infinities and every NaN among them
    if INTERPRETED and dtype == torch.bfloat16:  # Triton 3.7's interpreter takes seven subnormals for 0
        values[values.abs() < torch.finfo(dtype).tiny] = 0
    assert_levels(values)


def test_logits_at_and_beside_the_bounds_have_their_level() -> None:
    bounds = packed.level_bounds()
    beside = [bounds, bounds.nextafter(torch.tensor(torch.inf)), bounds.nextafter(torch.tensor(-torch.inf))]
    values = torch.cat([*beside, torch.tensor([0.0, -0.0, torch.nan, 88.0, -88.0, 3e38, -3e38, 1e-45])])
    assert_levels(torch.nn.functional.pad(values, (0, 1024 - len(values))))


def assert_levels(values: torch.Tensor) -> None:
    values = values.to(DEVICE)
    result = torch.empty(len(values), dtype=torch.int32, device=DEVICE)
    _levels[(len(values) // 1024,)](values, result, packed.level_bounds().to(DEVICE), N=1024)
    assert torch.equal(result, packed.levels(values))


# --- whole attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [FaithfulAttention(opening_voxels=0), PhysicalAttention(opening_radius_mm=0)], ids=["faithful", "physical"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_on_an_odd_shape(dtype: torch.dtype, mode) -> None:
    values = as_dtype(logits((3, 3, 3, 5, 11), seed=1), dtype)
    if dtype != torch.uint8:
        values[0, 0, 1, 2:5] = torch.nan
        values[1, 1, 0, 0, 0], values[2, 1, 0, 0, 0] = torch.inf, -torch.inf
    words = assert_same(values, mode).words_CXYZ
    assert (words != 0).flatten(1).any(dim=1).all()  # every criterion is put to the test


@pytest.mark.parametrize("mode", [FAITHFUL, PHYSICAL], ids=["faithful", "physical"])
@pytest.mark.parametrize(("M", "K"), [(1, 1), (1, 3), (2, 9), (4, 2)])
def test_architectures_and_organs(M: int, K: int, mode) -> None:
    assert_same(as_dtype(logits((M, K, 4, 5, 9), seed=2), torch.uint8), mode)


@pytest.mark.parametrize("K", [25, 32])
def test_many_organs_fill_a_word_up_to_its_sign(K: int) -> None:
    found = assert_same(as_dtype(logits((1, K, 3, 3, 5), seed=3), torch.float16), PHYSICAL, spacing=(4.0, 4.0, 4.0))
    assert found.sizes_K[K - 1] > 0


@pytest.mark.parametrize("mode", [FAITHFUL, PHYSICAL], ids=["faithful", "physical"])
def test_support_decides_what_counts(mode) -> None:
    support = torch.randint(0, 8, (3, 3, 5, 8), generator=torch.Generator().manual_seed(4), dtype=torch.int32)
    values = as_dtype(logits((3, 3, 3, 5, 8), seed=4), torch.float16)
    with_support, without = assert_same(values, mode, support=support), assert_same(values, mode)
    assert with_support.predicted_K.sum() < without.predicted_K.sum()


def test_a_skipped_organ_has_no_attention_and_still_contests() -> None:
    values = torch.full((2, 3, 2, 2, 3), 255, dtype=torch.uint8)
    found = assert_same(values, FAITHFUL, skip=frozenset({"o0", "o1"}))
    assert found.words_CXYZ.unique().tolist() == [0, 0b100]
    assert found.sizes_K.tolist() == [0, 0, 12]


@pytest.mark.parametrize("level", [0, 94, 255])
def test_empty_undecided_and_full(level: int) -> None:
    found = assert_same(torch.full((3, 2, 3, 6, 7), level, dtype=torch.uint8), FAITHFUL)
    assert found.predicted_K.tolist() == ([126, 0] if level == 255 else [0, 0])
    assert found.sizes_K.tolist() == ([126, 126] if level == 94 else [0, 0])


def test_one_voxel() -> None:
    values = torch.tensor([255, 0], dtype=torch.uint8).reshape(2, 1, 1, 1, 1)
    kept = assert_same(values, FaithfulAttention(opening_voxels=0))
    assert kept.sizes_K.tolist() == [1]
    assert kept.boxes_K32.tolist() == [[[0, 1], [0, 1], [0, 1]]]
    assert assert_same(values, FaithfulAttention(opening_voxels=2)).sizes_K.tolist() == [0]


def test_opening_crosses_tiles() -> None:
    """A 5x5x5 cube of dispute survives two steps where it lies on both sides of a tile's border, a 4x5x5 one does not."""
    values = torch.zeros((2, 1, 13, 11, 9), dtype=torch.uint8)
    values[0, 0, 1:6, 3:8, 2:7] = 255
    values[0, 0, 8:12, 3:8, 2:7] = 255
    found = assert_same(values, FaithfulAttention(opening_voxels=2))
    assert found.sizes_K.tolist() == [125]
    assert found.boxes_K32.tolist() == [[[1, 6], [3, 8], [2, 7]]]


def test_thresholds_of_ones_own() -> None:
    mode = FaithfulAttention(
        inconsistency=Inconsistency(threshold=0.25),
        uncertainty=Uncertainty(threshold=0.3, levels=None),
        overlap=Overlap(threshold=0.9),
    )
    assert_same(as_dtype(logits((2, 2, 3, 5, 7), seed=5), torch.float32), mode)

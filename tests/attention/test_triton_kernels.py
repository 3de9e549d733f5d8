"""Packed attention: its plain form against rules written down independently, and the Triton kernels against that form.

The kernels run in a process of their own, because Triton decides on import whether it interprets or compiles.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import entr, expit

from atlas_ray.attention import packed
from atlas_ray.attention.criteria import Disagreement, FaithfulAttention, Overlap, PhysicalAttention, PredictiveEntropy
from atlas_ray.exceptions import ConfigError, LabelError
from atlas_ray.organs import Organ, Organs

REPOSITORY = Path(__file__).resolve().parents[2]
KERNEL_TESTS = REPOSITORY / "tests" / "gpu" / "test_attention_kernels.py"
FULL = ndimage.generate_binary_structure(3, 3)
SPACING = (0.8, 0.8, 2.5)
ORGANS = Organs(
    name="three",
    organs=(
        Organ(name="a", label_id=7, color="#000000"),
        Organ(name="b", label_id=3, color="#000000"),
        Organ(name="tube", label_id=9, color="#000000", overlap_partner=False),
    ),
)
PARTNERS = [[1], [0], [0, 1]]  # of ORGANS, by hand
ONE = Organs(name="one", organs=ORGANS.organs[:1])


def smooth_bytes(architectures: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 3, 3, 2), mode="wrap")
    own = ndimage.gaussian_filter(rng.normal(size=(architectures, 3, *shape)), (0, 0, 3, 3, 2), mode="wrap")
    return np.rint(255 * expit(6 * shared / shared.std() + 4 * own / own.std() - 2)).astype(np.uint8)


def bit_planes(words_CXYZ: torch.Tensor, k: int) -> list[np.ndarray]:
    return [(word >> k & 1).bool().numpy() for word in words_CXYZ]


# --- the kernels ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kernels_equal_the_plain_form_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed (Linux only)")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(KERNEL_TESTS)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    summary = result.stdout.splitlines()[-1] if result.stdout else result.stderr
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.match(r"\d+ passed", summary), summary
    assert "skipped" not in summary


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in this process")
@pytest.mark.parametrize("element", ["u8", "fp16", "bf16", "fp32"])
def test_hopper_reads_values_in_16_byte_pieces(element: str, compiled: Callable[..., str]) -> None:
    """Triton compiles for a card that is not here; what a lane reads at once stands in the assembly."""
    assembly = compiled("_evidence", element, M=3, K=9, FAITHFUL=True, SUPPORTED=False, BLOCK=512, STAGES=3)
    pieces = re.findall(r"cp\.async\.c[ag]\.shared\.global .*?, 0x(\w+)", assembly)
    assert pieces, "no loads in flight while the last organ is worked on"
    assert {int(piece, 16) for piece in pieces} == {16}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in this process")
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("_evidence", {"M": 2, "K": 25, "FAITHFUL": False, "SUPPORTED": True, "BLOCK": 256, "STAGES": 1}),
        ("_box", {"STEPS": 2, "ERODE": True}),
        ("_measure", {"K": 9}),
        ("_gather", {"M": 3, "K": 9, "FAITHFUL": True, "SUPPORTED": True}),
    ],
)
def test_every_kernel_compiles_for_hopper(kernel: str, constants: dict[str, Any], compiled: Callable[..., str]) -> None:
    assert ".target sm_90" in compiled(kernel, "fp16", **constants)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Name of a kernel, element type of the values, constants -> its assembly for compute capability 9.0."""
    triton = pytest.importorskip("triton", reason="triton is not installed (Linux only)")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from atlas_ray.attention import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compile_(name: str, element: str, **constants: Any) -> str:
        kernel = getattr(triton_kernels, name)
        kernel = kernel.fn if name == "_evidence" else kernel  # under the autotuner
        constants = {**constants, "TILE": triton_kernels.TILE}
        types = {"values_ptr": f"*{element}", "bounds_ptr": "*fp32", "heat_ptr": "*fp32", "floor": "fp32"}
        types |= dict.fromkeys(("first_share", "second_share"), "fp32") | dict.fromkeys(constants, "constexpr")
        types |= dict.fromkeys(("label_ptr", "ids_ptr", "bits_ptr"), "*u8") | dict.fromkeys(("ends_ptr", "voxels_ptr"), "*i64")
        names = [parameter.name for parameter in kernel.params]
        signature = {n: types.get(n, "*i32" if n.endswith("_ptr") else "i32") for n in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith("_ptr") or n == "V"}
        source = ASTSource(kernel, signature, constants, aligned)
        return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"])

    return compile_


def test_without_triton_the_plain_form_works_and_a_gpu_is_told_what_is_missing() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from types import SimpleNamespace\n"
        "from atlas_ray.attention import packed\n"
        "from atlas_ray.exceptions import AtlasError\n"
        "try: packed.attend(SimpleNamespace(is_cuda=True), None)\n"
        "except AtlasError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout == "attention on a GPU needs triton, which is not installed; `pip install triton` (Linux only)\n"


# --- levels ---------------------------------------------------------------------------------------------------------


def test_a_logit_becomes_the_nearest_byte_of_its_probability_and_the_lower_of_two() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    every = every[~every.isnan()]
    expected = np.ceil(255 * expit(every.double().numpy()) - 0.5)
    assert np.array_equal(packed.levels(every).numpy(), expected)


def test_levels_by_hand() -> None:
    logits = torch.tensor([-torch.inf, -6.24, -6.23, 0.0, 1e-6, torch.inf, torch.nan])
    assert packed.levels(logits).tolist() == [0, 0, 1, 127, 128, 255, 256]
    assert packed.levels(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 255]


# --- faithful -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architectures", [1, 3])  # whose sums of bytes never meet a threshold exactly
@pytest.mark.parametrize("supported", [False, True])
def test_faithful_against_the_authors_rules_in_numpy(architectures: int, supported: bool) -> None:
    q = smooth_bytes(architectures, (17, 15, 13), seed=architectures)
    counts = ndimage.binary_dilation(q > 127, FULL[None, None]) if supported else np.ones(q.shape, bool)
    words = (counts * (1 << np.arange(3)).reshape(3, 1, 1, 1)).sum(axis=1).astype(np.int32)
    rules = packed.byte_rules(FaithfulAttention(), organs=ORGANS, architectures=architectures, spacing=SPACING)
    found = packed.attend(torch.from_numpy(q), rules, support_MXYZ=torch.from_numpy(words) if supported else None)

    soft = q * counts / 255
    average = soft.sum(axis=0) / architectures
    claims = average > 0.5
    best = average.argmax(axis=0)
    assert np.array_equal(found.label_XYZ.numpy(), np.where(claims.any(axis=0), np.array([7, 3, 9])[best], 0))
    assert found.predicted_K.tolist() == [int((found.label_XYZ == label).sum()) for label in (7, 3, 9)]
    attended = 0
    for k in range(3):
        std = np.std(soft[:, k], axis=0)
        uncertainty = np.floor(entr(q[:, k] / 255) * 255).mean(axis=0) / 255
        std_bin, unc_bin = opened(std > 0.1), opened(uncertainty > 0.05)
        overlap = claims[k] & claims[PARTNERS[k]].any(axis=0)
        assert all(np.array_equal(a, b) for a, b in zip(bit_planes(found.words_CXYZ, k), (std_bin, unc_bin, overlap), strict=True))
        mine = found.voxels_P[attended : attended + found.sizes_K[k]].numpy()
        heat = (std * std_bin + uncertainty * unc_bin + overlap).ravel()
        assert np.array_equal(mine, np.flatnonzero(heat))
        assert np.allclose(found.heat_P[attended : attended + len(mine)].numpy(), heat[mine], rtol=1e-6)
        assert np.array_equal(
            found.bits_P[attended : attended + len(mine)].numpy(), (std_bin + 2 * unc_bin + 4 * overlap).ravel()[mine]
        )
        attended += len(mine)
    assert attended == len(found.voxels_P) > 0


def opened(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(ndimage.binary_erosion(mask, FULL, iterations=2), FULL, iterations=2)


@pytest.mark.parametrize(("other", "fires"), [(51, False), (52, True)])
def test_two_architectures_a_fifth_apart_are_consistent(other: int, fires: bool) -> None:
    """52 - 0 of 255 is a deviation of 0.102, 51 - 0 one of exactly 0.1, which float64 may put on either side."""
    first, _, _ = packed.evidence(torch.tensor([[0], [other]]), None, rules_of(FaithfulAttention(), 2))
    assert first.item() == other**2
    assert (first > rules_of(FaithfulAttention(), 2).first_limit).item() is fires


def test_limits_by_hand() -> None:
    rules = rules_of(FaithfulAttention(), 3)
    assert (rules.first_limit, rules.second_limit, rules.claim_limit, rules.label_limit) == (5852, 38, 382, 382)
    assert rules.parts[[0, 1, 94, 255, 256]].tolist() == [0, 5, 93, 0, 93]


def rules_of(mode, architectures: int) -> packed.ByteRules:
    return packed.byte_rules(mode, organs=ONE, architectures=architectures, spacing=SPACING)


# --- physical -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architectures", [1, 2, 3])
def test_physical_decides_as_float64_for_every_combination_of_bytes(architectures: int) -> None:
    axes = np.arange(256)[:: 2 if architectures == 3 else 1]
    combinations = np.stack([grid.ravel() for grid in np.meshgrid(*[axes] * architectures)])
    combinations = combinations[:, (np.diff(combinations, axis=0) >= 0).all(axis=0)]
    rules = rules_of(PhysicalAttention(), architectures)
    first, second, total = packed.evidence(torch.from_numpy(combinations), None, rules)
    p = combinations / 255
    mean = p.mean(axis=0)
    whole, parts = entr(mean) + entr(1 - mean), (entr(p) + entr(1 - p)).mean(axis=0)
    assert np.array_equal((first > rules.first_limit).numpy(), whole > 0.6)
    assert np.array_equal((second > rules.second_limit).numpy(), whole - parts > 0.1)
    assert np.array_equal((total > rules.claim_limit).numpy(), 2 * combinations.sum(axis=0) > 255 * architectures)


def test_a_nan_is_undecided_and_claims_nothing() -> None:
    values = torch.full((3, 1, 1, 1, 2), 20.0)
    values[1, 0, 0, 0, 1] = torch.nan
    faithful = packed.attend(values, rules_of(FaithfulAttention(opening_voxels=0), 3))
    assert faithful.words_CXYZ[:, 0, 0].tolist() == [[0, 1], [0, 1], [0, 0]]  # 255, 0, 255; 93 / (3 * 255) = 0.12
    physical = packed.attend(values, rules_of(PhysicalAttention(opening_radius_mm=0), 3))
    assert physical.words_CXYZ[:, 0, 0].tolist() == [[0, 1], [0, 0], [0, 0]]
    assert physical.heat_P.tolist() == pytest.approx([1.0])


# --- in a mode's place ----------------------------------------------------------------------------------------------


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention()], ids=["faithful", "physical"])
@pytest.mark.parametrize("architectures", [1, 3])  # whose sums of bytes never meet a threshold exactly
@pytest.mark.parametrize("supported", [False, True])
@pytest.mark.parametrize("inner", [slice(None), slice(4, 11)], ids=["whole", "inner"])
def test_look_is_the_modes_own(device: str, mode, architectures: int, supported: bool, inner: slice) -> None:
    values = smooth_bytes(architectures, (17, 15, 13), seed=9)
    support = np.random.default_rng(9).integers(0, 8, (architectures, 17, 15, 13), np.uint32) if supported else None
    asked = {"organs": ORGANS, "spacing": SPACING, "support_MXYZ": support, "skip": frozenset({"b"}), "inner": inner}
    expected = mode.look(values, own_labels=True, label_threshold=0.4, **asked)
    found = packed.look(mode, values, device=device, label_threshold=0.4, **asked)
    assert np.array_equal(found.label_XYZ, expected.label_XYZ)
    assert np.array_equal(found.own_labels_MXYZ, expected.own_labels_MXYZ)
    assert found.predicted_voxels_K.tolist() == expected.predicted_voxels_K.tolist()
    assert [organ.voxels > 0 for organ in expected.organs] == [True, False, True]
    for ours, theirs in zip(found.organs, expected.organs, strict=True):
        assert (ours.shape, ours.box) == (theirs.shape, theirs.box)
        assert np.array_equal(ours.places_N, theirs.places_N)
        assert np.array_equal(ours.bits_N, theirs.bits_N)
        assert ours.heat_N.dtype == theirs.heat_N.dtype
        assert np.allclose(ours.heat_N, theirs.heat_N, rtol=1e-6, atol=1e-7)


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 5), (13, 4, 11)])
@pytest.mark.parametrize("steps", [(0, 0, 0), (1, 0, 2), (2, 2, 2)])
def test_opening_equals_scipys(shape: tuple[int, ...], steps: tuple[int, ...]) -> None:
    mask = np.random.default_rng(sum(shape)).random(shape) < 0.93
    box = np.ones([2 * n + 1 for n in steps], bool)
    expected = ndimage.binary_dilation(ndimage.binary_erosion(mask, box), box)
    assert np.array_equal(packed.opened(torch.from_numpy(mask), steps).numpy(), expected)


# --- ties and refusals ----------------------------------------------------------------------------------------------


def test_of_equal_organs_the_first_is_the_label() -> None:
    values = torch.tensor([[127, 200, 200], [255, 200, 200]], dtype=torch.uint8).reshape(2, 3, 1, 1, 1)
    rules = packed.byte_rules(FaithfulAttention(), organs=ORGANS, architectures=2, spacing=SPACING)
    assert packed.attend(values, rules).label_XYZ.item() == 3
    assert packed.attend(torch.full_like(values, 127), rules).label_XYZ.item() == 0


def test_what_does_not_fit_is_refused_in_words() -> None:
    many = Organs(name="many", organs=tuple(Organ(name=f"o{k}", label_id=k + 1, color="#000000") for k in range(33)))
    with pytest.raises(ConfigError, match="33 organs; packed attention holds up to 32"):
        packed.byte_rules(FaithfulAttention(), organs=many, architectures=3, spacing=SPACING)
    turned = PhysicalAttention(criteria=(Disagreement(), PredictiveEntropy(), Overlap()))
    with pytest.raises(ConfigError, match="got disagreement, predictive_entropy, overlap"):
        rules_of(turned, 3)
    with pytest.raises(LabelError, match=r"\(2, 1, 1, 1, 1\); the rules are for \[3, 1, X, Y, Z\]"):
        packed.attend(torch.zeros(2, 1, 1, 1, 1), rules_of(FaithfulAttention(), 3))
    with pytest.raises(LabelError, match=r"torch\.float64"):
        packed.attend(torch.zeros(3, 1, 1, 1, 1, dtype=torch.float64), rules_of(FaithfulAttention(), 3))
    with pytest.raises(LabelError, match=r"support of torch\.bool"):
        packed.attend(torch.zeros(3, 1, 1, 1, 1), rules_of(FaithfulAttention(), 3), support_MXYZ=torch.ones(3, 1, 1, 1).bool())

"""Candidates for attention and what is known of each, before anybody decides which are shown.

A candidate is a connected region of a permissive attention map, or a region that an anatomical rule points at. Voxels are in RAS on
the image's own grid; what the networks and the CT say of a voxel is read at the networks' spacing.

Axes: M architectures, X Y Z voxels, N voxels of candidates (one that lies in two counts twice), C candidates, F features.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from atlas_ray.attention.anatomy_rules import RULES, AnatomyRules, Mask, OrganShape, Rule
from atlas_ray.attention.rules import byte_entropies, mean_entropies
from atlas_ray.attention.scoring import labeled
from atlas_ray.attention.sparse import OrganAttention
from atlas_ray.components import box_of
from atlas_ray.resampling import nearest_indices
from atlas_ray.schema import IntTriple, Triple

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
NETWORKS = -1  # source of a candidate that no rule made

FEATURES = (
    "log_mm3",
    "probability",
    "probability_lowest",
    "probability_highest",
    "deviation",
    "deviation_highest",
    "entropy",
    "entropy_highest",
    "information",
    "information_highest",
    "overlap",
    "split_votes",
    "inside",
    "depth_mm",
    "deepest_mm",
    "outermost_mm",
    "hu",
    "hu_spread",
    "hu_gap",
    "fill",
    "elongation",
    "thickness_mm",
    "networks_agree",
    *(f"rule_{rule}" for rule in get_args(Rule)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """One organ's in one case.

    Args:
        shape: of the grid, RAS.
        places_N, member_N: voxels as flat positions in C order, and which candidate each belongs to.
        bits_N, heat_N: as in OrganAttention; what a rule made has the bit after the criteria's, and heat 1.
        source_C: index in RULES, or NETWORKS.
        features_CF: in the order of FEATURES.
        organ_shape: what is compared with the cohort.
    """

    shape: IntTriple
    places_N: Places
    member_N: npt.NDArray[np.int32]
    bits_N: npt.NDArray[np.uint8]
    heat_N: Numbers
    source_C: npt.NDArray[np.int8]
    features_CF: Numbers
    organ_shape: OrganShape

    def __len__(self) -> int:
        return len(self.source_C)

    def shown(self, weight_C: Numbers) -> OrganAttention:
        """Attention of the candidates with a weight above 0, their heat times the weight; where two share a voxel, the stronger."""
        weight_N = weight_C[self.member_N]
        kept_N = weight_N > 0
        places, at_N = np.unique(self.places_N[kept_N], return_inverse=True)
        bits, heat = np.zeros(len(places), np.uint8), np.zeros(len(places))
        np.bitwise_or.at(bits, at_N, self.bits_N[kept_N])
        np.maximum.at(heat, at_N, self.heat_N[kept_N] * weight_N[kept_N])
        return OrganAttention.at(self.shape, places, bits, heat)


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What a candidate is judged by, of one organ in one case.

    Args:
        bytes_MXYZ: probabilities at the networks' spacing.
        image_XYZ: HU on the same grid; None where the CT is not at hand, and its features are then 0.
        mask_XYZ: the predicted label, on the image's own grid in RAS.
        mirror_XYZ: of the same organ on the body's other side, where there is one.
        spacing: mm, of the image's own grid.
    """

    bytes_MXYZ: npt.NDArray[np.uint8]
    image_XYZ: npt.NDArray[np.int16] | None
    mask_XYZ: Mask
    mirror_XYZ: Mask | None
    spacing: Triple


def find_candidates(
    attention: OrganAttention,
    around: Surroundings,
    organ_shape: OrganShape,
    *,
    rules: AnatomyRules,
    criteria: Sequence[str],
    min_volume_mm3: float,
) -> Candidates:
    """Every candidate of one organ.

    Args:
        attention: permissive, on the image's own grid in RAS.
        criteria: its criteria in bit order.
        min_volume_mm3: smaller regions of the map are left out.
    """
    places, members = [attention.places_N], [np.empty(0, np.int32)]
    bits, heats = [attention.bits_N], [attention.heat_N]
    sources: list[int] = []
    if attention.box is not None:
        label_N, count = labeled(attention)
        large_C = np.bincount(label_N, minlength=count + 1)[1:] * np.prod(around.spacing) >= min_volume_mm3
        kept_N = large_C[label_N - 1]
        places, bits, heats = [attention.places_N[kept_N]], [attention.bits_N[kept_N]], [attention.heat_N[kept_N]]
        members = [(np.cumsum(large_C) - 1)[label_N[kept_N] - 1].astype(np.int32)]
        sources = [NETWORKS] * int(large_C.sum())
    for rule, places_N in rules.regions(around.mask_XYZ, around.mirror_XYZ, around.spacing):
        places.append(places_N)
        members.append(np.full(len(places_N), len(sources), np.int32))
        bits.append(np.full(len(places_N), 1 << len(criteria), np.uint8))
        heats.append(np.ones(len(places_N)))
        sources.append(RULES.index(rule))
    places_N, member_N, bits_N = np.concatenate(places), np.concatenate(members), np.concatenate(bits)
    source_C = np.array(sources, np.int8)
    overlap_N = (bits_N & (1 << criteria.index("overlap")) > 0) if "overlap" in criteria else np.zeros(len(bits_N), np.bool_)
    features_CF = describe(places_N, member_N, overlap_N, source_C, around)
    return Candidates(attention.shape, places_N, member_N, bits_N, np.concatenate(heats), source_C, features_CF, organ_shape)


def describe(
    places_N: Places,
    member_N: npt.NDArray[np.int32],
    overlap_N: npt.NDArray[np.bool_],
    source_C: npt.NDArray[np.int8],
    around: Surroundings,
) -> Numbers:
    """The features [C, F] of candidates; every one has at least one voxel."""
    C, shape = len(source_C), around.mask_XYZ.shape
    if not C:
        return np.empty((0, len(FEATURES)))
    M, *grid = around.bytes_MXYZ.shape
    where = np.unravel_index(places_N, shape)
    coarse = tuple(nearest_indices(n_in, n_out)[axis] for axis, n_in, n_out in zip(where, grid, shape, strict=True))
    voxels_C = np.bincount(member_N, minlength=C).astype(float)

    def mean(values_N: npt.NDArray[np.generic]) -> Numbers:
        result: Numbers = np.bincount(member_N, weights=values_N.astype(float), minlength=C) / voxels_C
        return result

    def most(values_N: npt.NDArray[np.generic]) -> Numbers:
        result = np.full(C, -np.inf)
        np.maximum.at(result, member_N, values_N.astype(float))
        return result

    x, y, z = coarse
    levels_MN = around.bytes_MXYZ[:, x, y, z].astype(np.int64)
    probability_N, deviation_N = levels_MN.mean(axis=0) / 255, levels_MN.std(axis=0) / 255
    entropy_N = mean_entropies(M)[levels_MN.sum(axis=0)]
    information_N = np.maximum(0, entropy_N - byte_entropies()[levels_MN].mean(axis=0))
    votes_N = np.count_nonzero(levels_MN > 127, axis=0)
    depth_N, hu_N, organ_hu = _read(around, coarse, shape)
    covariance_C33, edges_C3 = _shape(where, member_N, voxels_C, around.spacing)
    axes_C3 = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance_C33), 1e-6))  # smallest first
    hu_C, volume_C = mean(hu_N), voxels_C * np.prod(around.spacing)
    votes_MXYZ = around.bytes_MXYZ > 127
    ever = np.count_nonzero(votes_MXYZ.any(axis=0))
    agree = np.count_nonzero(votes_MXYZ.all(axis=0)) / ever if ever else 0.0
    columns = (
        np.log(volume_C),
        mean(probability_N),
        -most(-probability_N),
        most(probability_N),
        mean(deviation_N),
        most(deviation_N),
        mean(entropy_N),
        most(entropy_N),
        mean(information_N),
        most(information_N),
        mean(overlap_N),
        mean((votes_N > 0) & (votes_N < M)),
        mean(around.mask_XYZ[where]),
        mean(depth_N),
        most(depth_N),
        -most(-depth_N),
        hu_C,
        np.sqrt(np.maximum(0, mean(hu_N**2) - hu_C**2)),
        np.abs(hu_C - organ_hu),
        volume_C / edges_C3.prod(axis=1),
        axes_C3[:, 2] / axes_C3[:, 0],
        np.sqrt(12) * axes_C3[:, 0],
        np.full(C, agree),
        *(source_C == index for index in range(len(RULES))),
    )
    return np.column_stack(columns).astype(float)


def _read(around: Surroundings, coarse: Sequence[npt.NDArray[np.intp]], shape: Sequence[int]) -> tuple[Numbers, Numbers, float]:
    """Of every voxel its depth in mm below the organ's surface (negative outside; -100 at most, and without an organ) and its HU;
    and the organ's mean HU. All on the networks' grid."""
    grid = around.bytes_MXYZ.shape[1:]
    picked = [nearest_indices(n, out) for n, out in zip(shape, grid, strict=True)]
    mask = around.mask_XYZ[np.ix_(*picked)]
    depth_N, image = np.full(len(coarse[0]), -100.0), around.image_XYZ
    if mask.any():
        inside = np.zeros(grid, bool)
        inside[coarse[0], coarse[1], coarse[2]] = True
        window = box_of(mask | inside, margin=1)
        spacing = [n * edge / out for n, edge, out in zip(shape, around.spacing, grid, strict=True)]
        crop = mask[window]
        depth = ndimage.distance_transform_edt(crop, spacing) - ndimage.distance_transform_edt(~crop, spacing)
        depth_N = np.maximum(depth[tuple(c - side.start for c, side in zip(coarse, window, strict=True))], -100.0)
    if image is None:
        return depth_N, np.zeros(len(coarse[0])), 0.0
    return depth_N, image[coarse[0], coarse[1], coarse[2]].astype(float), float(image[mask].mean()) if mask.any() else 0.0


def _shape(
    where: Sequence[npt.NDArray[np.intp]], member_N: npt.NDArray[np.int32], voxels_C: Numbers, spacing: Triple
) -> tuple[Numbers, Numbers]:
    """Of every candidate the covariance of its voxels [C, 3, 3] in mm2, a voxel's own extent included, and its box's edges [C, 3]
    in mm."""
    C = len(voxels_C)
    at_3N = [axis * edge for axis, edge in zip(where, spacing, strict=True)]
    means_3C = [np.bincount(member_N, weights=at, minlength=C) / voxels_C for at in at_3N]
    away_3N = [at - mean[member_N] for at, mean in zip(at_3N, means_3C, strict=True)]
    covariance, edges = np.empty((C, 3, 3)), np.empty((C, 3))
    for i in range(3):
        for j in range(3):
            covariance[:, i, j] = np.bincount(member_N, weights=away_3N[i] * away_3N[j], minlength=C) / voxels_C
        covariance[:, i, i] += spacing[i] ** 2 / 12
        low, high = np.full(C, np.inf), np.full(C, -np.inf)
        np.minimum.at(low, member_N, at_3N[i])
        np.maximum.at(high, member_N, at_3N[i])
        edges[:, i] = high - low + spacing[i]
    return covariance, edges


# --- on disk --------------------------------------------------------------------------------------------------------


def to_bytes(by_organ: Mapping[str, Candidates]) -> bytes:
    """What learning needs of a case's candidates, as npz without pickle."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"features": np.array(FEATURES)}
    for organ, own in by_organ.items():
        arrays |= {
            f"{organ}/places": own.places_N,
            f"{organ}/member": own.member_N,
            f"{organ}/source": own.source_C,
            f"{organ}/values": own.features_CF,
            f"{organ}/organ": np.array([own.organ_shape.log_ml, *own.organ_shape.center_mm]),
            f"{organ}/shape": np.array(own.shape),
        }
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def from_bytes(data: bytes) -> dict[str, Candidates]:
    """What `to_bytes` wrote, without bits and heat; {} where another version wrote other features."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if tuple(arrays["features"].tolist()) != FEATURES:
            return {}
        result = {}
        for organ in dict.fromkeys(key.partition("/")[0] for key in arrays.files if "/" in key):
            log_ml, x, y, z = arrays[f"{organ}/organ"].tolist()
            places_N = arrays[f"{organ}/places"]
            result[organ] = Candidates(
                shape=tuple(arrays[f"{organ}/shape"].tolist()),
                places_N=places_N,
                member_N=arrays[f"{organ}/member"],
                bits_N=np.zeros(len(places_N), np.uint8),
                heat_N=np.zeros(len(places_N)),
                source_C=arrays[f"{organ}/source"],
                features_CF=arrays[f"{organ}/values"],
                organ_shape=OrganShape(log_ml=log_ml, center_mm=(x, y, z)),
            )
    return result

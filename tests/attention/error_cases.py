"""Small cases with real geometry: a ball of an organ, three networks that see it, an error in some, a harmless doubt in others."""

from dataclasses import dataclass

import numpy as np

from atlas_ray.attention.anatomy_rules import AnatomyRules, organ_shapes
from atlas_ray.attention.candidates import Candidates, Surroundings, find_candidates
from atlas_ray.attention.criteria import CalibratedAttention
from atlas_ray.attention.learning import Revised, compare
from atlas_ray.organs import Organs

ORGANS = Organs.model_validate({"name": "one", "organs": [{"name": "liver", "label_id": 1, "color": "#c8604f"}]})
SHAPE, SPACING = (20, 20, 20), (3.0, 3.0, 3.0)
RULES = AnatomyRules()
AWAY = np.indices(SHAPE).T - 9.5  # from the middle, voxels
AWAY = np.moveaxis(AWAY.T, 0, -1)


@dataclass(frozen=True)
class PlayedCase:
    bytes_MXYZ: np.ndarray
    image_XYZ: np.ndarray
    truth_XYZ: np.ndarray
    label_XYZ: np.ndarray


def play(seed: int, *, error: bool, doubt: bool) -> PlayedCase:
    """A cap of the organ is lost to two networks of three; another cap is doubted by one."""
    random = np.random.default_rng(seed)
    radius = random.uniform(5.5, 7)
    depth = radius - np.linalg.norm(AWAY, axis=-1)
    truth = depth > 0
    p_MXYZ = np.stack([1 / (1 + np.exp(-(depth + random.normal(0, 0.1)) * 6)) for _ in range(3)])

    def cap() -> np.ndarray:
        direction = random.normal(size=3)
        return truth & (AWAY @ (direction / np.linalg.norm(direction)) > radius * random.uniform(0.3, 0.6))

    if doubt:
        region = cap()
        p_MXYZ[random.integers(3)][region] = random.uniform(0.05, 0.4)
    if error:
        region = cap()
        for network in random.permutation(3)[:2]:
            p_MXYZ[network][region] = random.uniform(0.05, 0.3)
    image = np.rint(100 * truth + random.normal(0, 10, SHAPE)).astype(np.int16)
    return PlayedCase(np.rint(255 * p_MXYZ).astype(np.uint8), image, truth, (p_MXYZ.mean(axis=0) > 0.5))


def candidates_of_played(case: PlayedCase) -> Candidates:
    mode = CalibratedAttention()
    look = mode.candidates.look(case.bytes_MXYZ[:, None], organs=ORGANS, spacing=SPACING, threads=1)
    return find_candidates(
        look.organs[0],
        Surroundings(case.bytes_MXYZ, case.image_XYZ, case.label_XYZ, None, SPACING),
        organ_shapes({"liver": case.label_XYZ}, SPACING)["liver"],
        rules=RULES,
        criteria=mode.candidates.criterion_names,
        min_volume_mm3=64,
    )


def revised(number: int) -> Revised:
    """Two of three cases have an error, one of two a doubt."""
    case = play(number, error=number % 3 > 0, doubt=number % 2 > 0)
    changed = case.truth_XYZ != case.label_XYZ
    return compare(f"case{number:03d}", "liver", candidates_of_played(case), changed, SPACING, min_error_mm3=500)

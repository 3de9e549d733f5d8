"""find_components against scipy.ndimage.label with numpy per label, and against cc3d with its statistics per organ, on one core.

All start from the attention of nine organs of one case and end with, for every component: voxels, box, peak, sum of heat and voxels
per criterion. Exits with 1 where the lists differ.

python benchmarks/components.py [--size N] [--rounds N]
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
import argparse
from collections.abc import Iterable

from measure import interleaved, one_thread, show

one_thread()

import cc3d
import numpy as np
import torch
from organ_case import organ_bytes
from scipy import ndimage

from atlas_ray.attention.criteria import FaithfulAttention
from atlas_ray.attention.scoring import find_components
from atlas_ray.attention.sparse import OrganAttention
from atlas_ray.organs import load_organs

SPACING = (1.5, 1.5, 1.5)
Component = tuple[int, tuple[tuple[int, int], ...], tuple[int, ...], float, tuple[int, ...]]
Volumes = list[tuple[np.ndarray, np.ndarray]]  # bits and heat of each organ


def ours(attention: Iterable[OrganAttention], names: tuple[str, ...]) -> list[list[Component]]:
    result = []
    for organ in attention:
        _, found = find_components(organ, organ="organ", criterion_names=names, spacing=(1.0, 1.0, 1.0))
        result.append(sorted((c.voxels, c.box, c.peak, round(c.score, 6), c.criteria) for c in found))
    return result


def described(labels: np.ndarray, boxes: list, bits: np.ndarray, heat: np.ndarray, names: tuple[str, ...]) -> list[Component]:
    """Every label by itself, within its box."""
    result = []
    for c, box in enumerate(boxes, 1):
        mask = labels[box] == c
        inside = np.where(mask, heat[box], -1)
        place = np.unravel_index(inside.argmax(), inside.shape)
        fired = tuple(name for i, name in enumerate(names) if (bits[box][mask] >> i & 1).any())
        result.append(
            (
                int(mask.sum()),
                tuple((int(s.start), int(s.stop)) for s in box),
                tuple(int(p + s.start) for p, s in zip(place, box, strict=True)),
                round(float(heat[box][mask].sum()), 6),
                fired,
            )
        )
    return sorted(result)


def with_scipy(volumes: Volumes, names: tuple[str, ...]) -> list[list[Component]]:
    result = []
    for bits, heat in volumes:
        labels, _ = ndimage.label(bits > 0, np.ones((3, 3, 3)))
        result.append(described(labels, ndimage.find_objects(labels), bits, heat, names))
    return result


def with_cc3d(volumes: Volumes, names: tuple[str, ...]) -> list[list[Component]]:
    result = []
    for bits, heat in volumes:
        labels = cc3d.connected_components(bits > 0, connectivity=26)
        boxes = list(cc3d.statistics(labels)["bounding_boxes"])[1:]
        result.append(described(labels, boxes, bits, heat, names))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    mode, organs = FaithfulAttention(), load_organs("abdomenatlas_1_0")
    values, source = organ_bytes(args.size)
    attention = mode.look(values, organs=organs, spacing=SPACING, threads=1).organs
    volumes = [(organ.dense(organ.bits_N), organ.dense(organ.heat_N)) for organ in attention]
    names = mode.criterion_names
    lists = ours(attention, names)
    agree = lists == with_scipy(volumes, names) == with_cc3d(volumes, names)
    note = (
        f"{len(volumes)} organs, {args.size}^3, {source}: {sum(map(len, lists))} components, "
        f"{sum(organ.voxels for organ in attention)} voxels with attention. Same components: {agree}."
    )
    variants = {
        "ours": lambda: ours(attention, names),
        "cc3d and its statistics, numpy per label": lambda: with_cc3d(volumes, names),
        "scipy.ndimage.label, numpy per label": lambda: with_scipy(volumes, names),
    }
    show(f"Components, {args.rounds} rounds", interleaved(variants, rounds=args.rounds), ours="ours", note=note)
    if not agree:
        raise SystemExit("the components differ")


if __name__ == "__main__":
    main()

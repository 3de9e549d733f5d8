"""FaithfulAttention.look on one core and on all, against the authors' rules in numpy float64 and scipy.ndimage.

Same bytes in, same answers out: label map, three masks and a heat map per organ, sizes. Also against one read and one copy of the
input, which nothing can be faster than. Exits with 1 where a single voxel differs.

python benchmarks/attention.py [--size N] [--architectures M] [--organs K] [--rounds N] [--peer-rounds N]
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
import argparse
import os

from measure import interleaved, one_thread, show

one_thread()

import numpy as np
import torch
from organ_case import organ_bytes
from scipy import ndimage
from scipy.special import entr

from atlas_ray.attention.criteria import FaithfulAttention, PhysicalAttention
from atlas_ray.attention.scoring import quantized_heat
from atlas_ray.attention.sparse import GridAttention
from atlas_ray.organs import Organs, load_organs

FULL = ndimage.generate_binary_structure(3, 3)
SPACING = (1.5, 1.5, 1.5)
Maps = tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]  # label, bits per organ, heat bytes per organ


def authors(values_MKXYZ: np.ndarray, organs: Organs) -> Maps:
    """The authors' rules (paper-algorithm a.3, a.4) as they write them, from memory instead of from files."""
    soft = [[values_MKXYZ[m, k] / 255 for m in range(len(values_MKXYZ))] for k in range(len(organs))]
    average = [sum(parts) / len(parts) for parts in soft]
    hard = [mean > 0.5 for mean in average]
    best, label = np.zeros(hard[0].shape, np.int64), np.zeros(hard[0].shape, np.uint8)
    for k, label_id in enumerate(organs.label_ids):
        total = values_MKXYZ[:, k].sum(axis=0, dtype=np.int64)  # equal sums are a tie, whatever their float64 means round to
        better = hard[k] & (total > best)
        label[better], best[better] = label_id, total[better]
    entropy_of = (entr(np.arange(256) / 255) * 255).astype(np.uint8)  # their networks' entropy files, from bytes
    bits, heats = [], []
    for k, partners in enumerate(organs.overlap_partners):
        deviation = np.std(soft[k], axis=0)
        entropies = [entropy_of[values_MKXYZ[m, k]] / 255 for m in range(len(values_MKXYZ))]
        uncertainty = sum(entropies) / len(entropies)
        inconsistent, uncertain = opened(deviation > 0.1), opened(uncertainty > 0.05)
        overlap = np.zeros(deviation.shape, bool)
        for other in partners:
            overlap |= hard[k] & hard[other]
        heat = deviation * inconsistent + uncertainty * uncertain + overlap
        bits.append((inconsistent + 2 * uncertain + 4 * overlap).astype(np.uint8))
        heats.append((heat / max(heat.max(), 1e-300) * 255).astype(np.uint8))
    return label, bits, heats


def opened(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(ndimage.binary_erosion(mask, FULL, iterations=2), FULL, iterations=2)


def dense(found: GridAttention) -> Maps:
    bits = [organ.dense(organ.bits_N) for organ in found.organs]
    return found.label_XYZ, bits, [organ.dense(quantized_heat(organ.heat_N)) for organ in found.organs]


def same(found: GridAttention, expected: Maps) -> bool:
    label, bits, heats = dense(found)
    return (
        np.array_equal(label, expected[0])
        and all(np.array_equal(a, b) for a, b in zip(bits, expected[1], strict=True))
        and all(np.array_equal(a, b) for a, b in zip(heats, expected[2], strict=True))
        and [organ.voxels for organ in found.organs] == [int(np.count_nonzero(b)) for b in expected[1]]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--architectures", type=int, default=3)
    parser.add_argument("--organs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer-rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    full = load_organs("abdomenatlas_1_0")
    if args.organs > len(full):
        parser.error(f"--organs: at most {len(full)}")
    organs = Organs(name="benchmark", organs=full.organs[: args.organs])
    values, source = organ_bytes(args.size, architectures=args.architectures, organs=args.organs)
    cores = len(os.sched_getaffinity(0))
    mode, physical = FaithfulAttention(), PhysicalAttention()

    def look(threads: int) -> GridAttention:
        found = mode.look(values, organs=organs, spacing=SPACING, threads=threads)
        for organ in found.organs:
            quantized_heat(organ.heat_N)
        return found

    agree = same(look(1), authors(values, organs)) and same(look(cores), dense(look(1)))
    share = sum(organ.voxels for organ in look(1).organs) / (args.organs * args.size**3)
    about = (
        f"{args.architectures} architectures x {args.organs} organs x {args.size}^3, {values.nbytes / 1e6:.0f} MB; {source}. "
        f"{(values > 0).mean():.1%} of the bytes are not 0, {share:.2%} of the voxels attended. Heat is normalized to bytes in "
        f"every row; ours lists attended voxels, 'volumes' also writes masks and heats as volumes. Same outputs: {agree}."
    )
    ours = "ours, one core"
    fast = {
        ours: lambda: look(1),
        f"ours, {cores} cores": lambda: look(cores),
        "ours, one core, volumes": lambda: dense(look(1)),
        "ours, physical, one core": lambda: physical.look(values, organs=organs, spacing=SPACING, threads=1),
        "one read of the input (numpy sum of words)": lambda: values.reshape(-1).view(np.uint64).sum(),
        "one read and write (numpy copy)": lambda: values.copy(),
    }
    show(f"Attention, faithful, {args.rounds} rounds", interleaved(fast, rounds=args.rounds), ours=ours, note=about)
    peer = {name: fast[name] for name in (ours, f"ours, {cores} cores")}
    peer["authors' rules, numpy/scipy float64"] = lambda: authors(values, organs)
    times = interleaved(peer, rounds=args.peer_rounds, warm_up=False)
    show(f"Against the authors' rules on one core, {args.peer_rounds} rounds", times, ours=ours)
    if not agree:
        raise SystemExit("the outputs differ")


if __name__ == "__main__":
    main()

"""The attention rules written down plainly, in numpy float64 and scipy.ndimage, over whole volumes of bytes.

Faithful: paper-algorithm a.3 and a.4. Shares no code with the modes; keep it slow and plain.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import entr

FULL = ndimage.generate_binary_structure(3, 3)
LN_2 = np.log(2)


@dataclass
class Answer:
    bits: np.ndarray  # [K, X, Y, Z]
    heat: np.ndarray  # [K, X, Y, Z] float64
    label: np.ndarray  # [X, Y, Z]
    own: np.ndarray  # [M, X, Y, Z]
    sizes: np.ndarray  # [K]


def faithful(values, support, partners, *, ids=None, skipped=(), label_threshold=0.5) -> Answer:
    """values: uint8 [M, K, X, Y, Z]; support: bool, the same, or None; partners: per organ the organs it must not touch."""
    soft = values / 255
    if support is not None:
        soft = soft * support
    average = np.mean(soft, axis=0) > 0.5
    bits, heats = [], []
    for k, others in enumerate(partners):
        entropy = (entr(values[:, k] / 255) * 255).astype(np.uint8)
        std = np.std(soft[:, k], axis=0)
        unc = np.mean(entropy / 255, axis=0)
        std_bin, unc_bin = twice_opened(std > 0.1), twice_opened(unc > 0.05)
        overlap = np.zeros(std.shape, bool)
        for other in others:
            overlap |= average[k] & average[other]
        bits.append((std_bin + 2 * unc_bin + 4 * overlap) * (k not in skipped))
        heats.append((std * std_bin + unc * unc_bin + overlap) * (k not in skipped))
    return Answer(np.stack(bits).astype(np.uint8), np.stack(heats), *labels(values, support, ids, label_threshold))


def twice_opened(mask):
    eroded = ndimage.binary_erosion(mask, structure=FULL, iterations=2)
    return ndimage.binary_dilation(eroded, structure=FULL, iterations=2)


def physical(values, support, partners, criteria, *, radius, spacing, ids=None, label_threshold=0.5) -> Answer:
    """criteria: (name, threshold) in bit order; every one but the overlap is opened by a box of whole voxels."""
    p = values / 255
    mean = values.sum(axis=0, dtype=np.int64) / (255 * len(values))
    average_of = p if support is None else p * support
    box = np.ones([2 * int(radius / edge + 0.5) + 1 for edge in spacing], bool)
    most = {"predictive_entropy": LN_2, "disagreement": LN_2, "overlap": 1, "inconsistency": 0.5, "uncertainty": 1 / np.e}
    bits, heats = [], []
    for k, others in enumerate(partners):
        bit, heat = np.zeros(mean.shape[1:], np.uint8), np.zeros(mean.shape[1:])
        for i, (name, threshold) in enumerate(criteria):
            if name == "overlap":
                average = np.mean(average_of, axis=0) > threshold
                evidence = np.zeros(heat.shape)
                for other in others:
                    evidence[average[k] & average[other]] = 1
                fired = evidence > 0
            else:
                if name == "predictive_entropy":
                    evidence = entropy_of(mean[k])
                elif name == "disagreement":
                    evidence = np.maximum(entropy_of(mean[k]) - np.mean(entropy_of(p[:, k]), axis=0), 0)
                elif name == "inconsistency":
                    evidence = np.std(p[:, k], axis=0)
                else:
                    evidence = np.mean(np.floor(entr(p[:, k]) * 255) / 255, axis=0)
                fired = ndimage.binary_dilation(ndimage.binary_erosion(evidence > threshold, box), box)
            bit |= (fired << i).astype(np.uint8)
            heat = np.maximum(heat, evidence / most[name] * fired)
        bits.append(bit)
        heats.append(heat)
    return Answer(np.stack(bits), np.stack(heats), *labels(values, support, ids, label_threshold))


def entropy_of(p):
    return entr(p) + entr(1 - p)


def labels(values, support, ids, threshold):
    """Label map of the mean, of each architecture, and voxels of each label."""
    counted = values if support is None else values * support
    ids = np.arange(1, values.shape[1] + 1) if ids is None else np.asarray(ids)

    def label(part):
        above = np.mean(part / 255, axis=0) > threshold
        total = np.where(above, part.sum(axis=0, dtype=np.int64), -1)
        return np.where(above.any(axis=0), ids[total.argmax(axis=0)], 0).astype(np.uint8)

    whole = label(counted)
    return whole, np.stack([label(counted[m : m + 1]) for m in range(len(values))]), np.array([(whole == i).sum() for i in ids])


def as_bytes(heat):
    """One organ's heat as the authors store it."""
    return (heat / heat.max() * 255).astype(np.uint8) if heat.any() else np.zeros(heat.shape, np.uint8)


def bits_of(found):
    """What a mode's `look` found, as volumes [K, X, Y, Z]."""
    return np.stack([organ.dense(organ.bits_N) for organ in found.organs])


def heat_of(found):
    return np.stack([organ.dense(organ.heat_N) for organ in found.organs])

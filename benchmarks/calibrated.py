"""Does calibrated attention find the errors of new cases, having seen the revisions of others? docs/calibrated_attention.md.

python benchmarks/calibrated.py [--revised 30] [--new 20] [--alpha 0.1] [--seed 0]

Procedural patients; three networks are played: their probabilities are the truth's, each with a border of its own, with errors of
known kinds put in (missing part, spill, cavity, missing slices, a far island, a swapped side), and with doubts where the label is
right. Everything after the networks is the real code: candidates, rules, features, learning, thresholds, attention.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine
from scipy import ndimage

from atlas_ray.annotation.merge import OrganProvenance, Provenance
from atlas_ray.attention.criteria import CalibratedAttention
from atlas_ray.attention.detector import AttentionDetector
from atlas_ray.cluster.calibrated import detector_of
from atlas_ray.cluster.finishing import finish
from atlas_ray.cluster.timing import Stopwatch
from atlas_ray.config import Campaign
from atlas_ray.data.phantom import Patient, Phantom, procedural_patient
from atlas_ray.evaluation.components import Detection, detect
from atlas_ray.organs import Organs
from atlas_ray.records import Case
from atlas_ray.segmentation.packed_probabilities import PackedProbabilities, pack
from atlas_ray.steps.attention import ATTENTION, attention_report, table_1
from atlas_ray.steps.learn_attention import learn_attention_step, said
from atlas_ray.storage import new_folder
from atlas_ray.volume import read_labels, write_volume
from atlas_ray.workspace import seal, write_lines

SPACING = 5.0
SCAN = Phantom(spacing=(SPACING,) * 3, field_of_view_mm=(384, 336, 384), variant_rate=0.05)
SMALLEST_MM3 = 500.0  # attention below four voxels is nothing on this grid, in every mode
NETWORKS = ("a", "b", "c")
ERROR_RATE, DOUBT_RATE = 0.3, 0.5  # per organ and case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revised", type=int, default=30)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fooled", type=float, default=0.2, help="share of errors that fool all three networks alike")
    parser.add_argument("--learner", choices=("boosting", "logistic"), default="boosting")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        modes = {name: ATTENTION[name].model_copy(update={"min_component_mm3": SMALLEST_MM3}) for name in ("faithful", "physical")}
        modes["calibrated"] = _calibrated(arguments.alpha, arguments.learner)
        campaigns = {name: _campaign(Path(folder) / name, mode) for name, mode in modes.items()}
        organs = campaigns["calibrated"].load_organs()
        count = arguments.revised + arguments.new
        found: dict[str, dict[str, dict[str, Detection]]] = {name: {} for name in modes}
        detector: AttentionDetector | None = None
        for number in range(count):
            is_new = number >= arguments.revised
            if is_new and detector is None:
                mode = campaigns["calibrated"].attention
                assert isinstance(mode, CalibratedAttention)
                detector = learn_attention_step(campaigns["calibrated"], 0, mode=mode)
                print(*said(detector), sep="\n", flush=True)
            seed = 10_000 * arguments.seed + number
            patient = procedural_patient(SCAN, seed=seed, organs=organs)
            packed = [pack(one) for one in played(patient, organs, seed, fooled=arguments.fooled)]
            for name in modes if is_new else ["calibrated"]:
                case = _predict(campaigns[name], f"case{number:03d}", patient, packed, organs, 1 if is_new else 0)
                if is_new:
                    found[name][case.case_id] = _detections(campaigns[name], case, organs)
        for name, per_case in found.items():
            rules = campaigns[name].evaluation
            report = attention_report(per_case, organs.names, round_index=1, split="new", mode=name, rules=rules)
            columns, rows = table_1(report)
            print(f"\n{name}: {report.cases} new cases, errors from {rules.min_error_mm3:g} mm3 on")
            for row in (columns, *rows):
                print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row) + " |")
            total = [sum(getattr(o.counts, key) for o in report.organs) for key in ("hit", "errors", "right", "regions")]
            missed = [d.missed_share for by in per_case.values() for d in by.values() if d.missed_share is not None]
            print(
                f"pooled over organs: sensitivity {total[0] / max(1, total[1]):.3f} of {total[1]}, precision "
                f"{total[2] / max(1, total[3]):.3f} of {total[3]}; mean missed share of error volume {np.mean(missed):.3f}"
            )
    print(f"\n{time.monotonic() - started:.0f} s, {machine()}")


def _calibrated(alpha: float, learner: str) -> CalibratedAttention:
    default = CalibratedAttention()
    return CalibratedAttention.model_validate(
        {
            "alpha": alpha,
            "learner": {"learner": learner},
            "candidates": default.candidates.model_copy(update={"min_component_mm3": SMALLEST_MM3}),
            "fallback": default.fallback.model_copy(update={"min_component_mm3": SMALLEST_MM3}),
        }
    )


def _campaign(workspace: Path, mode: object) -> Campaign:
    content = {
        "name": "calibrated",
        "workspace": str(workspace),
        "datasets": [{"source": "phantom", "name": "none", "count": 1, "split": "pool"}],
        "preprocessing": {"spacing": [SPACING] * 3},
        "pseudo_labels": {"largest_component": False},
        "attention": mode,
        "evaluation": {"min_error_mm3": 1000},
    }
    return Campaign.model_validate(content)


def _predict(campaign: Campaign, case_id: str, patient: Patient, packed: list[bytes], organs: Organs, round_index: int) -> Case:
    """Everything behind the networks; a case of round 0 is revised to the truth at once."""
    workspace, image, label = campaign.open_workspace(), patient.image, patient.label
    grid = {"shape": image.shape, "spacing": image.spacing, "orientation": "RAS"}
    case = Case(case_id=case_id, image="-", sha256=case_id, split="pool", source="phantom", license="CC0-1.0", **grid)
    known = workspace.cases() if workspace.manifest.exists() else []
    write_lines(workspace.manifest, [*known, case])
    write_volume(workspace.truth(case_id), label)
    detector = detector_of(campaign, round_index)
    with new_folder(workspace.prediction(round_index, case_id)) as folder:
        finish(
            folder,
            campaign,
            case,
            image,
            PackedProbabilities(packed),
            round_index=round_index,
            checkpoints=dict.fromkeys(NETWORKS, "played"),
            key=case_id,
            watch=Stopwatch(),
            detector=detector.learned,
            image_XYZ=np.asarray(image.voxels),
        )
    if round_index == 0:
        path = workspace.annotation(0, case_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, label)
        said_by = [OrganProvenance(organ=name, source="revised", round=0, users=("oracle",)) for name in organs.names]
        provenance = Provenance(case_id=case_id, round=0, organs=tuple(said_by))
        seal(path.parent, workspace.provenance(0, case_id).name, provenance.model_dump_json())
    return case


def _detections(campaign: Campaign, case: Case, organs: Organs) -> dict[str, Detection]:
    workspace = campaign.open_workspace()
    truth, pseudo = read_labels(workspace.truth(case.case_id)), read_labels(workspace.pseudo_label(1, case.case_id))
    return {
        name: detect(
            organs.mask(pseudo, name) != organs.mask(truth, name),
            read_labels(workspace.attention(1, case.case_id, name)) > 0,
            case.spacing,
            campaign.evaluation,
        )
        for name in organs.names
    }


# --- three networks, played ------------------------------------------------------------------------------------------


def played(patient: Patient, organs: Organs, seed: int, *, fooled: float) -> np.ndarray:
    """uint8 [M, K, X, Y, Z]: round(255 p). An organ that is there gets an error and a doubt with the rates above."""
    random = np.random.default_rng([seed, 77])
    label = np.asarray(patient.label.voxels)
    logits = np.full((len(NETWORKS), len(organs), *label.shape), -9.0, np.float32)
    depths = {name: _depth(organs.mask(label, name)) for name in organs.names}
    for channel, name in enumerate(organs.names):
        depth = depths[name]
        if not (depth > 0).any():
            continue
        for m in range(len(NETWORKS)):
            logits[m, channel] = np.clip(depth + 0.7 * _field(random, label.shape), -9, 9)
        if random.random() < DOUBT_RATE:
            _doubt(logits[:, channel], depth, random)
        if random.random() < ERROR_RATE:
            mirror = organs.mirror(name)
            _err(logits, channel, depth, random, organs.channel(mirror) if mirror else None, fooled)
    return np.rint(255 / (1 + np.exp(-logits))).astype(np.uint8)


def _depth(mask: np.ndarray) -> np.ndarray:
    """mm below the organ's surface, negative outside."""
    if not mask.any():
        return np.full(mask.shape, -100.0, np.float32)
    inner = ndimage.distance_transform_edt(mask, (SPACING,) * 3)
    return (inner - ndimage.distance_transform_edt(~mask, (SPACING,) * 3) - SPACING / 2 * np.sign(mask - 0.5)).astype(np.float32)


def _field(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth noise of standard deviation 1, about 15 mm wide."""
    noise = ndimage.zoom(random.standard_normal([n // 4 + 2 for n in shape]), 4, order=1)
    return (noise[: shape[0], : shape[1], : shape[2]] / 0.65).astype(np.float32)


def _ball(depth: np.ndarray, where: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    """An ellipsoid about a random voxel of `where`."""
    places = np.argwhere(where)
    center = places[random.integers(len(places))]
    axes = np.meshgrid(*(np.arange(n) for n in depth.shape), indexing="ij", sparse=True)
    radii = radius * random.uniform(0.7, 1.3, 3)
    return sum(((a - c) * SPACING / r) ** 2 for a, c, r in zip(axes, center, radii, strict=True)) < 1


def _say(
    logits_MXYZ: np.ndarray, region: np.ndarray, low: float, high: float, networks: np.ndarray, random: np.random.Generator
) -> None:
    """These networks give the region a probability between low and high each."""
    for m in networks:
        p = random.uniform(low, high)
        logits_MXYZ[m][region] = np.log(p / (1 - p)) + 0.3 * random.standard_normal(int(region.sum()))


def _doubt(logits_MXYZ: np.ndarray, depth: np.ndarray, random: np.random.Generator) -> None:
    """What worries the ensemble and changes nothing: one network dissents, or all are lukewarm, and the label is right."""
    order, is_inside = random.permutation(len(NETWORKS)), random.random() < 0.5
    region = _ball(depth, np.abs(depth) < 8, random.uniform(8, 15), random) & (
        (depth > 0) if is_inside else (depth < 0) & (depth > -20)
    )
    if random.random() < 0.6:
        _say(logits_MXYZ, region, *((0.05, 0.3) if is_inside else (0.7, 0.95)), order[:1], random)
    else:
        _say(logits_MXYZ, region, *((0.58, 0.7) if is_inside else (0.3, 0.42)), order, random)


def _err(
    logits: np.ndarray, channel: int, depth: np.ndarray, random: np.random.Generator, mirror: int | None, fooled: float
) -> None:
    """One error; most split the networks two to one, some fool all three alike."""
    own, order = logits[:, channel], random.permutation(len(NETWORKS))
    kinds = [
        "missing",
        "missing",
        "spill",
        "spill",
        "cavity",
        "slices",
        "island",
        *(["swap"] if mirror is not None and fooled else []),
    ]
    kind, inside = random.choice(kinds), depth > 0
    wrong, right = ((0.03, 0.25), (0.5, 0.95))  # of a voxel of the organ; 1 - p of any other
    if kind == "slices":
        present = np.flatnonzero(inside.any(axis=(0, 1)))
        if len(present) >= 6:
            at = int(random.integers(present[0] + 2, present[-1] - 2))
            gap = np.zeros_like(inside)
            gap[..., at : at + 2] = inside[..., at : at + 2]
            _say(own, gap, 0.01, 0.05, order, random)
    elif kind == "missing":
        direction = random.standard_normal(3)
        along = sum(a * d for a, d in zip(np.meshgrid(*map(np.arange, depth.shape), indexing="ij"), direction, strict=True))
        part = inside & (along > np.quantile(along[inside], random.uniform(0.7, 0.9)))
        _say(own, part, *wrong, order[:2], random)
        _say(own, part, *(right if random.random() >= fooled else wrong), order[2:], random)
    elif kind == "cavity":
        part = inside & _ball(depth, depth > min(8.0, float(depth.max()) * 0.7), random.uniform(9, 16), random)
        _say(own, part, *wrong, order[:2], random)
        _say(own, part, *right, order[2:], random)
    elif kind in ("spill", "island"):
        shell = (depth < -2) & (depth > -8) if kind == "spill" else (depth < -25) & (depth > -50)
        part = ~inside & _ball(depth, shell, random.uniform(10, 16), random)
        _say(own, part, 0.75, 0.97, order[:2], random)
        _say(own, part, *((0.05, 0.5) if random.random() >= fooled else (0.75, 0.97)), order[2:], random)
        _give_way(logits, channel, part)
    else:
        part = inside & _ball(depth, inside, random.uniform(12, 20), random)
        _say(own, part, *wrong, order, random)
        _say(logits[:, mirror], part, 0.6, 0.9, order, random)


def _give_way(logits: np.ndarray, channel: int, region: np.ndarray) -> None:
    """What a network gives to one organ it takes from the others: no organ has more than the rest of the probability."""
    for others in np.delete(np.arange(logits.shape[1]), channel):
        logits[:, others, region] = np.minimum(logits[:, others, region], -logits[:, channel, region])


if __name__ == "__main__":
    main()

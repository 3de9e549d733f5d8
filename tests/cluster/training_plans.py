"""Trainings of a few steps on invented cases."""

from pathlib import Path
from typing import Any

import numpy as np

from atlas_ray.cluster.training import TrainingCase, TrainingPlan
from atlas_ray.data.preprocess import Preprocessing, write_blocks
from atlas_ray.organs import Organs
from atlas_ray.segmentation.architectures import UNet
from atlas_ray.segmentation.checkpoints import Provenance

ORGANS = Organs.model_validate(
    {
        "name": "three",
        "organs": [
            {"name": "liver", "label_id": 6, "color": "#c8604f"},
            {"name": "spleen", "label_id": 2, "color": "#9b6bd6"},
            {"name": "thymus", "label_id": 9, "color": "#e0383e"},  # nobody labels it
        ],
    }
)
STEPS = 6


def cache(folder: Path, *known: str) -> TrainingCase:
    """One bright cube per known organ. A cube of every other organ lies there too: the loss must not look at it."""
    rng = np.random.default_rng(len(known[0]))
    label = np.zeros((24, 24, 24), np.uint8)
    label[2:10, 2:10, 2:10] = 6
    label[14:20, 14:20, 4:10] = 2
    label[4:10, 14:20, 14:20] = 9
    image = (label.astype(np.int16) * 20 + rng.integers(-30, 30, label.shape)).astype(np.int16)
    foreground = np.full((3, 8, 3), -1, np.int16)
    for k, value in enumerate(ORGANS.label_ids):
        foreground[k] = np.argwhere(label == value)[::20][:8]
    folder.mkdir(parents=True)
    write_blocks(folder / "image.b2nd", image)
    write_blocks(folder / "label.b2nd", label)
    np.save(folder / "foreground.npy", foreground)
    return TrainingCase(case_id=folder.name, folder=str(folder), sources=dict.fromkeys(known, "original"))


def make_plan(root: Path, name: str, **changes: Any) -> TrainingPlan:
    cases = tuple(
        TrainingCase(case_id=n, folder=str(root / n), sources={o: "original"}) for n, o in (("a", "liver"), ("b", "spleen"))
    )
    return TrainingPlan.model_validate(
        {
            "name": name,
            "output": str(root / f"{name}.pt"),
            "parent": None,
            "storage": str(root / "train"),
            "organs": ORGANS,
            "architecture": UNet(features=(4, 8), residual_units=1),
            "schedule": {
                "steps": STEPS,
                "batch": 2,
                "learning_rate": 0.01,
                "weight_decay": 0,
                "warmup_steps": 2,
                "precision": "float32",
                "seed": 3,
                "checkpoint_every": 2,
                "log_every": 2,
            },
            "patches": {"patch": (16, 16, 16)},
            "preprocessing": Preprocessing(spacing=(2, 2, 2)),
            "inference": {"window": (16, 16, 16), "overlap": 0.25, "precision": "float32"},
            "pseudo_labels": {},
            "cases": cases,
            "validation": cases[:1],
            "provenance": Provenance(
                round=0, cases=2, data_key="abc", steps=STEPS, seed=3, created="2026-01-01T00:00:00+00:00", versions={"torch": "2"}
            ),
            **changes,
        }
    )

"""The training loop in this process: what is selected, averaged, refused and resumed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_plans import ORGANS, cache, make_plan

from atlas_ray.cluster.loop import TrainingLoop
from atlas_ray.cluster.reporting import STATE, FolderReporter
from atlas_ray.cluster.training import Resources, TrainingCase, TrainingPlan, progress_file, train
from atlas_ray.data.preprocess import write_blocks
from atlas_ray.organs import Organs
from atlas_ray.segmentation.architectures import NNUNet
from atlas_ray.segmentation.checkpoints import read_checkpoint

pytestmark = pytest.mark.usefixtures("in_this_process", "one_thread")
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from atlas_ray.cluster.loop import TrainingLoop
from atlas_ray.cluster.session import in_process
from atlas_ray.cluster.training import Resources, TrainingPlan, train

step = TrainingLoop._step

def fatal(loop, number, batch):
    if number == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(loop, number, batch)

torch.set_num_threads(1)
TrainingLoop._step = fatal
with in_process():
    train(TrainingPlan.model_validate_json(Path(sys.argv[1]).read_text()), Resources())
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    for name, organ in (("a", "liver"), ("b", "spleen"), ("c", "spleen")):
        cache(folder / name, organ)
    focus = np.zeros((24, 24, 24), np.uint8)
    focus[0:12] = 1
    write_blocks(folder / "c" / "focus.b2nd", focus)
    return folder


def case(root: Path, name: str, organ: str, source: str = "original", *, is_annotated: bool = False) -> TrainingCase:
    return TrainingCase.model_validate(
        {"case_id": name, "folder": str(root / name), "sources": {organ: source}, "is_annotated": is_annotated}
    )


def with_everything(root: Path, name: str) -> TrainingPlan:
    """Every knob that adds something to the state between two steps, or to what is drawn."""
    plan = make_plan(
        root,
        name,
        architecture=NNUNet(features=(4, 8), deep_supervision=True),
        cases=[case(root, "a", "liver"), case(root, "c", "spleen", "revised", is_annotated=True)],
        validation=[case(root, "b", "spleen")],
        patches={"patch": (16, 16, 16), "replay": 0.5, "augmentation": {"mirror": 0.5}},
        last_output=str(root / f"{name}.last.pt"),
    )
    schedule = {
        **plan.schedule.model_dump(),
        "steps": 24,
        "ema_decay": 0.9,
        "checkpoint_every": 5,
        "validate_every": 4,
        "validate_on": "train",
        "validation_cases": 1,
        "keep": "best",
        "patience": 50,
    }
    return TrainingPlan.model_validate({**plan.model_dump(), "schedule": schedule})


def same(one: str | Path, other: str | Path) -> bool:
    first, second = read_checkpoint(Path(one))[1], read_checkpoint(Path(other))[1]
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_killed_training_ends_with_the_weights_it_would_have_had_to_the_last_bit(root: Path, tmp_path: Path) -> None:
    """SIGKILL in step 17, two steps after the state of step 15 was kept: averages, the best weights and refusals included."""
    undisturbed, killed = with_everything(root, "undisturbed"), with_everything(root, "killed")
    train(undisturbed, Resources())
    (tmp_path / "plan.json").write_text(killed.model_dump_json())
    result = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "plan.json")], capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert not Path(killed.output).exists()
    train(killed, Resources())
    assert "nnunet resumes at step 15" in progress_file(killed).read_text().splitlines()
    assert same(killed.output, undisturbed.output)
    assert killed.last_output is not None
    assert undisturbed.last_output is not None
    assert same(killed.last_output, undisturbed.last_output)


def changed(plan: TrainingPlan, **schedule: Any) -> TrainingPlan:
    return TrainingPlan.model_validate({**plan.model_dump(), "schedule": {**plan.schedule.model_dump(), **schedule}})


def test_the_average_is_what_is_saved(root: Path) -> None:
    plain, averaged = make_plan(root, "plain"), changed(make_plan(root, "averaged"), ema_decay=0.9)
    loops = {}
    for plan in (plain, averaged):
        loops[plan.name] = TrainingLoop(plan, FolderReporter(root / plan.name, torch.device("cpu")))
        loops[plan.name].run()
    last = loops["averaged"].bare.state_dict()
    saved = read_checkpoint(Path(averaged.output))[1]
    assert all(torch.equal(last[key], value) for key, value in loops["plain"].bare.state_dict().items())  # trained alike
    assert not torch.equal(saved["head.weight"], last["head.weight"])


def test_a_share_of_the_parent_stays_in_what_is_validated_and_saved(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blend is made of the weights that training ended with, and does not disturb the training itself."""
    parent = make_plan(root, "parent")
    train(parent, Resources())
    seen: list[torch.Tensor] = []

    def dice(loop: TrainingLoop, _case: TrainingCase, member: Any, _settings: Any) -> dict[str, float | None]:
        seen.append(loop._saved_network().state_dict()["head.weight"].clone())
        return {"spleen": 0.5}

    monkeypatch.setattr(TrainingLoop, "_case_dice", dice)
    loops = {}
    for share in (0.0, 0.25):
        plan = make_plan(root, f"share{share}", parent=parent.output, validation=[case(root, "b", "spleen")])
        loops[share] = TrainingLoop(changed(plan, parent_share=share), FolderReporter(root / plan.name, torch.device("cpu")))
        loops[share].run()
    before, after = read_checkpoint(Path(parent.output))[1], loops[0.0].bare.state_dict()
    saved = read_checkpoint(Path(loops[0.25].plan.output))[1]
    assert all(torch.equal(after[key], value) for key, value in loops[0.25].bare.state_dict().items())  # trained alike
    torch.testing.assert_close(saved["head.weight"], 0.75 * after["head.weight"] + 0.25 * before["head.weight"])
    assert not torch.equal(saved["head.weight"], after["head.weight"])
    assert torch.equal(seen[-1], saved["head.weight"])
    assert read_checkpoint(Path(loops[0.0].plan.output))[1]["head.weight"].equal(after["head.weight"])


def test_nothing_is_given_back_where_the_parent_did_not_know_an_organ(root: Path) -> None:
    """Its output channel started from random numbers, which nobody wants a share of."""
    heart = ORGANS.organs[2].model_copy(update={"name": "heart"})
    parent = make_plan(root, "with_heart", organs=Organs(name="other three", organs=(*ORGANS.organs[:2], heart)))
    train(parent, Resources())
    plan = changed(make_plan(root, "with_thymus", parent=parent.output), parent_share=0.5)
    loop = TrainingLoop(plan, FolderReporter(root / plan.name, torch.device("cpu")))
    loop.run()
    saved = read_checkpoint(Path(loop.plan.output))[1]
    assert all(torch.equal(saved[key], value) for key, value in loop.bare.state_dict().items())


def test_without_gain_the_training_ends_and_the_best_weights_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations of 0.2, 0.5, 0.4 and 0.3 with a patience of two: it ends after the fourth, with the weights of the second."""
    plan = changed(with_everything(root, "patient"), steps=100, validate_every=3, patience=2, checkpoint_every=2, ema_decay=None)
    seen: list[torch.Tensor] = []
    dices = iter([0.2, 0.5, 0.4, 0.3])

    def dice(loop: TrainingLoop, *_: Any) -> dict[str, float | None]:
        seen.append(next(iter(loop.bare.state_dict().values())).clone())
        return {"spleen": next(dices)}

    monkeypatch.setattr(TrainingLoop, "_case_dice", dice)
    train(plan, Resources())
    assert "step 12: 2 validations without a better Dice than 0.500" in progress_file(plan).read_text()
    assert plan.last_output is not None
    best, last = (next(iter(read_checkpoint(Path(path))[1].values())) for path in (plan.output, plan.last_output))
    assert torch.equal(best, seen[1])
    assert torch.equal(last, seen[3])


def test_refused_steps_are_counted_across_a_restart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in the image of steps 1 and 4 of six: neither changes a weight; the count is in the state that was kept after step 4."""
    plan = make_plan(root, "refusing")
    step = TrainingLoop._step

    def spoiled(loop: TrainingLoop, number: int, batch: Any) -> float:
        if number in (1, 4):
            batch.hu_B1XYZ[:] = np.nan
        return step(loop, number, batch)

    monkeypatch.setattr(TrainingLoop, "_step", spoiled)
    train(plan, Resources())
    state = torch.load(root / "train" / "refusing" / STATE, weights_only=True)
    assert state["step"] == 4
    assert state["refused"] == [0, 1]
    again = TrainingLoop(plan, FolderReporter(root / "train" / "refusing", torch.device("cpu")))
    assert again._resume() == 4
    assert again.refused == 1
    lines = progress_file(plan).read_text()
    assert "step 4: gradient not finite, step left out (2 so far)" in lines


def test_only_what_a_person_changed_counts_more_in_focus(root: Path) -> None:
    """Of the same case, once revised and once original: the second must not look at the focus at all."""
    loss = {}
    for source in ("revised", "original"):
        for gain in (1.0, 5.0):
            plan = make_plan(root, "focus", cases=[case(root, "c", "spleen", source)])
            plan = changed(plan, trust={"revised": 1, "original": 1, "in_attention": gain})
            loop = TrainingLoop(plan, FolderReporter(root / "focus", torch.device("cpu")))
            _, batch = next(loop._batches(0))
            outputs = [torch.zeros(batch.targets_BKXYZ.shape)]
            loss[source, gain] = float(loop._loss(outputs, batch))
    assert loss["original", 5.0] == loss["original", 1.0] == loss["revised", 1.0]
    assert loss["revised", 5.0] > loss["revised", 1.0]


def test_a_case_knows_what_its_sources_are_worth(root: Path) -> None:
    plan = make_plan(root, "trust", cases=[case(root, "a", "liver", "revised"), case(root, "b", "spleen", "confirmed")])
    loop = TrainingLoop(plan, FolderReporter(root / "trust", torch.device("cpu")))
    assert ORGANS.names == ("liver", "spleen", "thymus")
    np.testing.assert_allclose([c.trust for c in loop.deck.cases], [[2, 0, 0], [0, 0.8, 0]])

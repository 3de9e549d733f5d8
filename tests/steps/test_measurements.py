"""Attention, errors, bias, false positives and the comparison of rounds, on two small cases whose every number is known."""

import csv
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.revisions import Revisions, diff_runs
from atlas_ray.cluster.prediction import predict_cases
from atlas_ray.cluster.session import in_process
from atlas_ray.config import Campaign, load_config
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import AttentionComponent, Case, CaseScores, RoundRecord
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, save_checkpoint
from atlas_ray.segmentation.members.nnunet import NNUNetFolder
from atlas_ray.steps.attention import attention_step, table_1
from atlas_ray.steps.bias import bias_step, label_makers
from atlas_ray.steps.compare import compare_step
from atlas_ray.steps.errors import errors_step
from atlas_ray.steps.evaluate import evaluate_step
from atlas_ray.steps.false_positives import false_positives_step
from atlas_ray.storage import write_atomically
from atlas_ray.volume import Volume, read_labels, write_volume
from atlas_ray.workspace import Workspace, write_lines

SHAPE, SPACING = (24, 24, 24), (2.0, 2.0, 2.0)
LIVER, SPLEEN = 5, 8


def box(label: int, x: tuple[int, int], y: tuple[int, int] = (6, 16), z: tuple[int, int] = (6, 16)) -> np.ndarray:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[slice(*x), slice(*y), slice(*z)] = label
    return voxels


def put(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(np.asfortranarray(voxels), np.diag([*SPACING, 1.0])))


@dataclass(frozen=True)
class Small:
    campaign: Campaign

    def predict(self, round_index: int, case: str, pseudo: np.ndarray, *, attention: np.ndarray, unet: np.ndarray) -> None:
        """What prediction leaves; `attention` is the liver's."""
        workspace = self.campaign.open_workspace()
        put(workspace.pseudo_label(round_index, case), pseudo)
        put(workspace.architecture_label(round_index, case, "unet"), unet)
        for organ in self.campaign.load_organs().names:
            put(workspace.attention(round_index, case, organ), attention if organ == "liver" else attention * 0)
        scores = CaseScores(
            case_id=case, round=round_index, checkpoints={}, attention_mode="physical", attention_voxels=1,
            attention_mm3=8000.0 / (round_index + 1), organs=(), seconds=1,
        )  # fmt: skip
        write_atomically(workspace.scores(round_index, case), scores.model_dump_json())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """Two holdout cases with a liver of 10 x 10 x 10 voxels of 8 mm3 and no other organ, and a pool case that two people read.

    Round 0: in "a" the network misses 3 slabs of the liver, where attention is; in "b" it has the liver right, invents a spleen of
    2 x 2 x 2 voxels, and attention lies on nothing. Round 1 is right.
    """
    folder = tmp_path_factory.mktemp("small")
    config = {
        "name": "small",
        "workspace": str(folder / "workspace"),
        "datasets": [{"source": "phantom", "name": "p", "count": 1, "seed": 1, "split": "holdout"}],
        "architectures": [{"architecture": "unet", "features": [4, 8, 16]}],
        "preprocessing": {"spacing": list(SPACING)},
        "patches": {"patch": [16, 16, 16]},
        "inference": {"window": [24, 24, 24], "overlap": 0.25, "batch": 1, "precision": "float32"},
        "evaluation": {"resamples": 50},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    campaign = load_config(folder / "small.yaml")
    made, workspace = Small(campaign), campaign.open_workspace()
    liver, short, spot = box(LIVER, (6, 16)), box(LIVER, (6, 13)), box(1, (0, 2), (0, 2), (0, 2))
    spleen = box(SPLEEN, (2, 4), (2, 4), (2, 4))
    write_lines(workspace.manifest, [case("a", "holdout"), case("b", "holdout"), case("c", "pool")])
    for name in ("a", "b"):
        put(workspace.truth(name), liver)
    made.predict(0, "a", short, attention=box(1, (12, 14)), unet=liver)
    made.predict(0, "b", liver + spleen, attention=spot, unet=liver)
    made.predict(0, "c", short, attention=spot, unet=short)
    for name in ("a", "b"):
        made.predict(1, name, liver, attention=spot * 0, unet=liver)
    write_atomically(workspace.record(0), RoundRecord(round=0, minutes=30).model_dump_json())
    components = [component(1, "liver", "missing_part", 800), component(2, "spleen", "", 64)]
    write_lines(workspace.components(0, "a"), components)
    with in_process(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow's own on import
        yield made


def case(case_id: str, split: str) -> Case:
    return Case(
        case_id=case_id, image="/nowhere", sha256="0" * 64, shape=SHAPE, spacing=SPACING, orientation="RAS", source="x",
        license="x", split=split,
    )  # fmt: skip


def component(index: int, organ: str, error: str, volume_mm3: float) -> AttentionComponent:
    """Of a heat of 1/4 everywhere."""
    return AttentionComponent(
        organ=organ, index=index, box=((0, 2), (0, 2), (0, 2)), peak=(0, 0, 0), voxels=int(volume_mm3 / 8), volume_mm3=volume_mm3,
        reason="std", criteria=("std",), score=volume_mm3 / 4, mean_heat=0.25, error=error,
    )  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_attention(small):
    report = attention_step(small.campaign, 0)
    liver = next(row for row in report.organs if row.organ == "liver")
    assert (report.cases, report.mode) == (2, "physical")
    assert (liver.counts.errors, liver.counts.hit) == (1, 1)
    assert (liver.counts.regions, liver.counts.right) == (2, 1)
    assert (liver.counts.error_voxels, liver.counts.attention_voxels, liver.counts.shared_voxels) == (300, 208, 100)
    assert (liver.sensitivity.value, liver.precision.value) == (1, 0.5)
    assert liver.voxel_sensitivity.value == pytest.approx(1 / 3)
    # The spleen's error is 64 mm3, just large enough; no attention of its own lies there.
    assert report.sensitivity.value == 0.5
    assert report.precision.value == 0.5
    columns, rows = table_1(report)
    assert rows[-1][:3] == ("mean", 2, 2)
    assert dict(zip(columns, rows[4], strict=True))["organ"] == "liver"
    assert rows[4][4] == 0.49  # the paper's
    workspace = small.campaign.open_workspace()
    found = rows_of(workspace.report(0, "attention_holdout_physical").with_name("attention_holdout_physical_per_case.csv"))
    assert len(found) == 2 * 9
    assert workspace.plot(0, "attention_holdout_physical_table_1").read_bytes().startswith(b"\x89PNG")


def test_another_mode_looks_again_with_the_same_networks_and_leaves_the_round_alone(small, tmp_path):
    campaign, workspace = small.campaign, small.campaign.open_workspace()
    random = np.random.default_rng(0)
    put(tmp_path / "ct.nii.gz", random.normal(0, 100, SHAPE).astype(np.int16))
    (architecture,) = campaign.architectures
    origin = Provenance(round=7, cases=1, data_key="", steps=1, seed=0, created="2026-01-01T00:00:00+00:00")
    header = CheckpointHeader(
        architecture=architecture, organs=campaign.load_organs().names, spacing=SPACING, window_hu=(-175, 250), provenance=origin
    )
    save_checkpoint(workspace.checkpoint(7, "unet"), header, architecture.build(9).state_dict())
    cases = workspace.cases()
    write_lines(workspace.manifest, [*cases, case("d", "train").model_copy(update={"image": str(tmp_path / "ct.nii.gz")})])
    put(workspace.truth("d"), box(LIVER, (6, 16)))
    predict_cases(campaign, 7, workspace.cases()[-1:])
    before = workspace.scores(7, "d").read_bytes()
    report = attention_step(campaign, 7, split="train", mode="faithful")
    other = Workspace(workspace.other_attention("faithful"))
    write_lines(workspace.manifest, cases)
    assert (report.mode, report.cases) == ("faithful", 1)
    assert other.case_scores(7, "d").attention_mode == "faithful"
    assert np.array_equal(read_labels(other.pseudo_label(7, "d")), read_labels(workspace.pseudo_label(7, "d")))
    assert workspace.scores(7, "d").read_bytes() == before
    assert workspace.report(7, "attention_train_faithful").exists()


def test_errors(small):
    report = errors_step(small.campaign, 0)
    types = {row.error: row for row in report.types}
    assert set(types) == {"absent_organ", "boundary_shift"}
    shift, absent = types["boundary_shift"], types["absent_organ"]
    assert (shift.errors, shift.cases, shift.volume_ml, shift.has_attention) == (1, 1, 2.4, 1)
    assert (absent.errors, absent.volume_ml, absent.has_attention) == (1, 0.064, 0)  # no case has a spleen
    (one,) = [e for e in report.errors if e.organ == "liver"]
    assert one.box == ((13, 16), (6, 16), (6, 16))


def test_false_positives(small):
    report = false_positives_step(small.campaign, 0)
    rows = {row.organ: row for row in report.organs}
    assert "liver" not in rows  # every case has one
    spleen = rows["spleen"]
    assert (spleen.cases, spleen.cases_with_any, spleen.components, spleen.largest_mm3) == (2, 1, 1, 64)
    assert [(c.case_id, c.organ) for c in report.components] == [("b", "spleen")]
    assert rows["aorta"].cases_with_any == 0


def test_bias(small):
    report = bias_step(small.campaign, 0)
    pairs = {(p.first, p.second): p for p in report.pairs}
    assert set(pairs) == {("unet", "average"), ("unet", "reference"), ("average", "reference")}
    assert pairs["unet", "reference"].dice.value == 1
    short = 2 * 700 / 1700
    assert pairs["average", "reference"].dice.value == pytest.approx((short + 0.5) / 2)  # b: the liver 1, the spleen 0
    assert pairs["average", "reference"].cases == 2


def test_networks_that_others_trained_are_label_makers(small):
    """A guest that knows the spleen alone, and finds the one of "b" that the average invents."""
    campaign = small.campaign.model_copy(
        update={"members": (NNUNetFolder(member="nnunet", name="guest", path="/nowhere", orientation="RAS"),)}
    )
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    unknown = tuple(name for name in organs.names if name != "spleen")
    before = {name: workspace.case_scores(0, name) for name in ("a", "b")}
    for name, voxels in (("a", box(0, (0, 1))), ("b", box(SPLEEN, (2, 4), (2, 4), (2, 4)))):
        put(workspace.architecture_label(0, name, "guest"), voxels)
        absent = before[name].model_copy(update={"absent": {"guest": unknown}})
        write_atomically(workspace.scores(0, name), absent.model_dump_json())
    pairs = {(p.first, p.second): p for p in bias_step(campaign, 0).pairs}
    assert pairs["guest", "average"].dice.value == 1  # of "b" alone: nobody has a spleen in "a", and the guest knows no liver
    assert pairs["guest", "reference"].dice.value == 0
    for name, scores in before.items():
        write_atomically(workspace.scores(0, name), scores.model_dump_json())


def test_two_readers_are_label_makers(small):
    campaign, organs = small.campaign, small.campaign.load_organs()
    with open_database(campaign.database_url) as database:
        queue, revisions = Queue(database), Revisions(database)
        queue.fill(0, [QueueEntry(case_id="c", organs=("liver",), rank=1, reading=n) for n in (1, 2)])
        assert "reader 1" not in label_makers(campaign, 0, case("c", "pool"), organs)  # not handed in
        for user in ("ada", "bob"):
            item = queue.next(user)
            assert item is not None
            if item.reading == 2:
                runs = diff_runs(box(1, (6, 13)) > 0, box(1, (6, 16)) > 0)
                revisions.save(0, "c", "liver", user=user, parent_id=0, runs=runs, reading=2)
            queue.submit(item.item_id, user)
    makers = label_makers(campaign, 0, case("c", "pool"), organs)
    assert list(makers) == ["unet", "average", "reader 1", "reader 2"]
    assert np.array_equal(makers["reader 1"], box(LIVER, (6, 13)))
    assert np.array_equal(makers["reader 2"], box(LIVER, (6, 16)))


def test_rounds_compared(small):
    with pytest.raises(WorkspaceError, match=r"jobs\.evaluate dice CONFIG --round 0"):
        compare_step(small.campaign, (0, 1))
    for round_index in (0, 1):
        evaluate_step(small.campaign, round_index)
    found = compare_step(small.campaign, (0, 1))
    liver = next(row for row in found.organs if row.organ == "liver")
    assert (liver.cases, liver.after.value) == (2, 1)
    assert liver.difference.value == pytest.approx((1 - 1400 / 1700) / 2)
    assert found.mean.cases == 2
    assert (found.minutes, found.attention_ml) == (30, (8.0, 4.0))


def test_surface_dice_of_a_liver_that_is_three_slabs_short(small):
    """At 2 mm, one voxel. Pieces of surface lie between voxels: of a box of n voxels along an axis, n - 1 inside and one at either
    end. In voxel faces a flat piece has 1, one on an edge 1/sqrt(2), one at a corner sqrt(3)/8.

    The liver's 10 x 10 x 10 have 6 x 81 flat pieces, 12 x 9 on edges, 8 corners; the short 7 x 10 x 10 have 2 x 81 + 4 x 54,
    4 x 6 + 8 x 9, and 8. Of the short one, the cut face is off but for its outermost ring: 7 x 7. Of the liver, what lies more
    than a voxel past the cut is: a ring of 4 x 9 flat ones and 4 edges, then the end's 81, its 4 x 9 edges and 4 corners.
    """
    edge, corner = 2**-0.5, 3**0.5 / 8
    liver, short = 486 + 108 * edge + 8 * corner, 378 + 96 * edge + 8 * corner
    off = 49 + (36 + 4 * edge) + (81 + 36 * edge + 4 * corner)
    evaluation = evaluate_step(small.campaign, 0)
    found = {row.organ: row for row in evaluation.organs}["liver"]
    assert evaluation.surface_per_case["a"]["liver"] == pytest.approx(1 - off / (liver + short), abs=1e-4)
    assert evaluation.surface_per_case["b"] == dict.fromkeys(small.campaign.load_organs().names) | {"liver": 1}  # no spleen to find
    assert found.surface_dice == pytest.approx(1 - off / (liver + short) / 2, abs=1e-4)
    assert evaluation.mean_surface_dice == found.surface_dice
    assert all(row.surface_dice is None for row in evaluation.architectures["unet"])


def test_mlflow_has_the_tables_with_the_round_as_step(small):
    from mlflow import MlflowClient

    attention_step(small.campaign, 0)
    for round_index in (0, 1):
        evaluate_step(small.campaign, round_index)
    for _ in range(2):  # nothing is there twice
        compare_step(small.campaign, (0, 1))
    client = MlflowClient(small.campaign.tracking_uri)
    experiment = client.get_experiment_by_name("small")
    runs = {r.data.tags["atlas_ray.key"]: r for r in client.search_runs([experiment.experiment_id], max_results=50)}
    compared = runs["round-001/compare_holdout_000_001"]
    (point,) = client.get_metric_history(compared.info.run_id, "dice_gain/liver")[-1:]
    assert point.step == 1
    shown = json.loads(compared.data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in shown] == ["organs.json", "per_case.json"]
    table = json.loads(Path(client.download_artifacts(compared.info.run_id, "organs.json")).read_text())
    assert table["columns"][0] == "organ"
    assert [row[0] for row in table["data"]] == [*small.campaign.load_organs().names, "mean"]
    evaluated = runs["round-000/evaluate"]
    assert evaluated.data.metrics["surface_dice/mean"] < evaluated.data.metrics["dice/mean"]
    found = json.loads(Path(client.download_artifacts(evaluated.info.run_id, "attention_per_component.json")).read_text())
    assert [dict(zip(found["columns"], row, strict=True)) for row in found["data"]] == [
        {"case": "a", "organ": organ, "component": index, "error": error, "reason": "std", "volume_mm3": volume,
         "voxels": volume / 8, "heat_score": volume / 4, "mean_heat": 0.25}
        for index, organ, error, volume in ((1, "liver", "missing_part", 800), (2, "spleen", "", 64))
    ]  # fmt: skip
    per_organ = json.loads(Path(client.download_artifacts(evaluated.info.run_id, "dice_per_organ.json")).read_text())
    assert per_organ["columns"] == ["organ", "cases", "dice", "surface_dice", "dice_unet"]
    assert [row[:2] for row in per_organ["data"] if row[1]] == [["liver", 2]]
    attention = runs["round-000/attention_holdout_physical"]
    assert attention.data.metrics["attention_physical/sensitivity"] == 0.5
    assert {a.path for a in client.list_artifacts(attention.info.run_id, "plots")} == {
        "plots/attention_holdout_physical_table_1.png"
    }


def test_without_references_it_says_what_to_do(small):
    with pytest.raises(WorkspaceError, match="no predicted pool case with a reference label"):
        attention_step(small.campaign, 0, split="pool")
    with pytest.raises(WorkspaceError, match="no predicted train case"):
        bias_step(small.campaign, 0, split="train")

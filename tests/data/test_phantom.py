"""The phantom as a specification: what a made-up patient is, and what texturing does to a given label map.

Ranges of volumes are ordinary adult ranges (Geraghty et al. 2004, Kidney Int. and radiology textbooks), written here by hand and
wider than what anatomy.yaml draws from. Centroids are compared in RAS, where the first index grows toward the patient's right.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from scipy.ndimage import binary_erosion
from scipy.ndimage import label as connected

from atlas_ray.data.phantom import Patient, Phantom, Texture, load_anatomy, load_hounsfield, procedural_patient, textured_patient
from atlas_ray.exceptions import ConfigError, LabelError
from atlas_ray.organs import CONFIGS, Organs, load_organs
from atlas_ray.volume import Volume, read_volume, reorient, same_grid

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
BTCV = SHARED / "btcv_labels"
needs_btcv = pytest.mark.skipif(not BTCV.is_dir(), reason=f"no expert label maps at {BTCV}")

NINE = load_organs("abdomenatlas_1_0")
COARSE = Phantom(spacing=(4.0, 4.0, 4.0))
QUIET = Texture(noise_hu=0.0)

ADULT_ML = {
    "aorta": (60, 220),
    "gall_bladder": (15, 75),
    "kidney_left": (100, 220),
    "kidney_right": (100, 220),
    "liver": (1100, 1900),
    "pancreas": (50, 130),
    "postcava": (50, 230),
    "spleen": (110, 320),
    "stomach": (180, 520),
}


def volume_ml(patient: Patient, name: str, organs: Organs = NINE) -> float:
    return float(organs.mask(patient.label.voxels, name).sum() * patient.label.voxel_volume_mm3 / 1000)


def centroid_mm(patient: Patient, name: str) -> np.ndarray:
    """RAS mm."""
    voxel = np.argwhere(NINE.mask(patient.label.voxels, name)).mean(axis=0)
    return patient.label.affine[:3, :3] @ voxel + patient.label.affine[:3, 3]


def core_hu(patient: Patient, name: str, organs: Organs = NINE) -> np.ndarray:
    """HU of an organ away from its blurred surface."""
    return patient.image.voxels[binary_erosion(organs.mask(patient.label.voxels, name), iterations=2)]


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [procedural_patient(COARSE, seed=seed, organs=NINE) for seed in range(6)]


@pytest.fixture(scope="module")
def usual() -> Patient:
    """The patient of seed 7, whom the variants change."""
    return procedural_patient(COARSE, seed=7, organs=NINE)


def rare(variant: str, seed: int = 7) -> Patient:
    return procedural_patient(COARSE.model_copy(update={"variants": (variant,)}), seed=seed, organs=NINE)


class TestPatient:
    def test_is_a_ct_and_its_label_on_one_grid(self, patients: list[Patient]) -> None:
        patient = patients[0]
        assert patient.image.voxels.dtype == np.int16
        assert patient.label.voxels.dtype == np.uint8
        assert same_grid(patient.image, patient.label)
        assert patient.image.shape == (100, 75, 75)  # 400 x 300 x 300 mm at 4 mm
        assert patient.image.spacing == pytest.approx((4, 4, 4))
        assert patient.image.orientation == "RAS"
        assert patient.variants == ()

    def test_a_seed_is_one_patient(self, patients: list[Patient]) -> None:
        again = procedural_patient(COARSE, seed=3, organs=NINE)
        np.testing.assert_array_equal(again.image.voxels, patients[3].image.voxels)
        np.testing.assert_array_equal(again.label.voxels, patients[3].label.voxels)

    def test_another_seed_is_another_patient(self, patients: list[Patient]) -> None:
        for name in NINE.names:
            masks = [NINE.mask(patient.label.voxels, name) for patient in patients]
            for one, other in pairwise(masks):
                assert 2 * (one & other).sum() / (one.sum() + other.sum()) < 0.95, f"{name} is the same in two patients"

    @pytest.mark.parametrize("name", ADULT_ML)
    def test_every_organ_has_an_adult_volume(self, patients: list[Patient], name: str) -> None:
        low, high = ADULT_ML[name]
        for patient in patients:
            assert low <= volume_ml(patient, name) <= high

    @pytest.mark.parametrize("name", NINE.names)
    def test_every_organ_is_one_piece(self, patients: list[Patient], name: str) -> None:
        for patient in patients:
            pieces, _ = connected(NINE.mask(patient.label.voxels, name), np.ones((3, 3, 3)))
            sizes = np.bincount(pieces.ravel())[1:]
            assert sizes.max() >= 0.95 * sizes.sum()

    def test_sides_are_the_patients(self, patients: list[Patient]) -> None:
        for patient in patients:
            x = {name: centroid_mm(patient, name)[0] for name in NINE.names}
            assert x["spleen"] < x["aorta"] < x["postcava"] < x["liver"]
            assert x["kidney_left"] < x["aorta"] < x["kidney_right"]
            assert x["stomach"] < x["gall_bladder"]

    def test_heights_and_depths_are_a_patients(self, patients: list[Patient]) -> None:
        for patient in patients:
            middle = {name: centroid_mm(patient, name) for name in NINE.names}
            for kidney in ("kidney_left", "kidney_right"):
                assert middle[kidney][1] < middle["pancreas"][1] < middle["gall_bladder"][1]  # y grows toward the front
                assert middle[kidney][2] < middle["liver"][2]  # z grows toward the head

    def test_organs_the_anatomy_lacks_stay_absent_and_others_are_labeled_too(self) -> None:
        organs = load_organs("universal_32")
        patient = procedural_patient(COARSE, seed=1, organs=organs)
        present = set(organs.present(patient.label.voxels))
        assert {"liver", "colon", "duodenum", "esophagus", "lung_left", "lung_right", "adrenal_gland_left"} <= present
        assert not present & {"prostate", "liver_tumor", "femur_left"}

    def test_the_organ_set_changes_the_label_and_not_the_patient(self, patients: list[Patient]) -> None:
        organs = load_organs("btcv")
        patient = procedural_patient(COARSE, seed=2, organs=organs)
        np.testing.assert_array_equal(patient.image.voxels, patients[2].image.voxels)
        np.testing.assert_array_equal(organs.mask(patient.label.voxels, "spleen"), NINE.mask(patients[2].label.voxels, "spleen"))

    def test_air_surrounds_the_body_and_the_label_lies_inside(self, patients: list[Patient]) -> None:
        for patient in patients:
            hu = patient.image.voxels
            corners = hu[:4, -4:, :]  # left and front, where no couch is
            assert corners.mean() == pytest.approx(-1000, abs=15)
            box = np.argwhere(patient.label.voxels > 0)
            assert (box.min(axis=0)[:2] > 5).all()

    def test_shows_bone_fat_and_gas(self, patients: list[Patient]) -> None:
        for patient in patients:
            inside = patient.image.voxels[30:70, 20:60, :]
            assert (inside > 250).mean() > 0.005
            assert ((inside > -140) & (inside < -60)).mean() > 0.15
            assert (inside < -800).mean() > 0.01


class TestKnobs:
    @pytest.mark.parametrize("orientation", ["LPS", "LAS", "SPR", "AIL"])
    def test_orientation_turns_the_same_patient(self, patients: list[Patient], orientation: str) -> None:
        ras = patients[5]
        turned = procedural_patient(COARSE.model_copy(update={"orientation": orientation}), seed=5, organs=NINE)
        assert turned.image.orientation == turned.label.orientation == orientation
        for part in ("image", "label"):
            back = reorient(getattr(turned, part), "RAS")
            np.testing.assert_array_equal(back.voxels, getattr(ras, part).voxels)
            np.testing.assert_allclose(back.affine, ras.image.affine, atol=1e-9)

    def test_spacing_is_in_array_order(self) -> None:
        patient = procedural_patient(Phantom(spacing=(8, 5, 4), orientation="SLA"), seed=0, organs=NINE)
        assert patient.image.spacing == pytest.approx((8, 5, 4))
        assert patient.image.shape == (round(300 / 8), round(400 / 5), round(300 / 4))  # foot-head, left-right, back-front

    def test_spacing_keeps_the_patient(self) -> None:
        coarse, fine = (
            procedural_patient(Phantom(spacing=spacing), seed=4, organs=NINE) for spacing in ((5.0, 5.0, 5.0), (2.5, 2.5, 3.0))
        )
        for name in NINE.names:
            assert volume_ml(coarse, name) == pytest.approx(volume_ml(fine, name), rel=0.08)
            np.testing.assert_allclose(centroid_mm(coarse, name), centroid_mm(fine, name), atol=2.5)

    def test_field_of_view_cuts_the_patient_and_moves_nothing(self) -> None:
        whole = procedural_patient(COARSE, seed=4, organs=NINE)
        slab = procedural_patient(
            Phantom(spacing=(4, 4, 4), field_of_view_mm=(400, 300, 60), center_mm=(0, 10, 35)), seed=4, organs=NINE
        )
        assert slab.image.shape == (100, 75, 15)
        np.testing.assert_array_equal(slab.label.voxels, whole.label.voxels[:, :, 30:45])
        np.testing.assert_allclose(slab.label.affine[:3, 3], whole.label.affine[:3, 3] + [0, 0, 30 * 4])

    def test_noise_is_what_is_asked_for(self) -> None:
        noisy, quiet = (
            procedural_patient(COARSE.model_copy(update={"texture": Texture(noise_hu=noise)}), seed=1, organs=NINE)
            for noise in (20.0, 0.0)
        )
        inside = NINE.mask(noisy.label.voxels, "liver")
        difference = noisy.image.voxels[inside].astype(float) - quiet.image.voxels[inside]
        assert difference.std() == pytest.approx(20, rel=0.05)

    def test_blur_softens_edges(self) -> None:
        def steepest(blur_mm: float) -> float:
            knobs = COARSE.model_copy(update={"texture": QUIET.model_copy(update={"blur_mm": blur_mm})})
            return float(np.abs(np.diff(procedural_patient(knobs, seed=1, organs=NINE).image.voxels, axis=0)).max())

        assert steepest(0.5) > 1.2 * steepest(5.0)

    @pytest.mark.parametrize("orientation", ["RAX", "RLS", "RA", "ras"])
    def test_an_impossible_orientation_is_refused(self, orientation: str) -> None:
        with pytest.raises(ValidationError, match="one of L/R"):
            Phantom(orientation=orientation)

    def test_random_phase_draws_all_three(self) -> None:
        knobs = Phantom(spacing=(12, 12, 12), texture=Texture(phase="random"))
        phases = {procedural_patient(knobs, seed=seed, organs=NINE).phase for seed in range(7)}
        assert phases == {"non_contrast", "arterial", "portal"}


class TestHounsfield:
    @pytest.mark.parametrize("phase", ["non_contrast", "arterial", "portal"])
    def test_organs_are_as_bright_as_the_file_says(self, phase: str) -> None:
        patient = procedural_patient(Phantom(spacing=(3, 3, 3), texture=Texture(phase=phase)), seed=2, organs=NINE)
        for name in set(NINE.names) - {"stomach"}:  # hollow: its inside is content, not wall
            mean, sd = getattr(load_hounsfield().tissues[name], phase)
            # At most 2.8 sd between patients by construction; 6 HU for the vessels and fat an outline takes in.
            assert core_hu(patient, name).mean() == pytest.approx(mean, abs=2.8 * sd + 6)

    def test_contrast_is_what_a_radiologist_expects(self) -> None:
        patients = {
            phase: procedural_patient(COARSE.model_copy(update={"texture": Texture(phase=phase)}), seed=3, organs=NINE)
            for phase in ("non_contrast", "arterial", "portal")
        }

        def mean(phase: str, name: str) -> float:
            return float(core_hu(patients[phase], name).mean())

        assert mean("arterial", "aorta") > mean("portal", "aorta") + 60 > mean("non_contrast", "aorta") + 120
        assert mean("arterial", "aorta") > mean("arterial", "postcava") + 100
        assert mean("portal", "liver") > mean("non_contrast", "liver") + 25
        assert mean("portal", "gall_bladder") < 35

    def test_neighbors_overlap_so_that_the_task_is_not_trivial(self) -> None:
        patient = procedural_patient(COARSE, seed=3, organs=NINE)
        liver, spleen = core_hu(patient, "liver"), core_hu(patient, "spleen")
        assert abs(liver.mean() - spleen.mean()) < 2 * (liver.std() + spleen.std())

    def test_every_tissue_the_anatomy_names_has_hounsfield_units(self) -> None:
        anatomy, tissues = load_anatomy(), load_hounsfield().tissues
        body = anatomy.body
        named = {s.tissue or s.name for s in anatomy.structures} | {body.skin, body.fat, body.wall, body.filling, body.couch.tissue}
        assert named <= set(tissues), "a structure without an entry would silently look like soft tissue"


class TestVariants:
    def test_large_spleen(self, usual: Patient) -> None:
        assert 450 < volume_ml(rare("large_spleen"), "spleen") < 1000
        assert volume_ml(usual, "spleen") < 320

    def test_absent_gall_bladder(self, usual: Patient) -> None:
        assert volume_ml(rare("absent_gall_bladder"), "gall_bladder") == 0
        assert volume_ml(usual, "gall_bladder") > 15

    def test_enlarged_gall_bladder(self) -> None:
        assert 100 < volume_ml(rare("enlarged_gall_bladder"), "gall_bladder") < 210

    def test_small_kidney_is_one_of_the_two(self, usual: Patient) -> None:
        sides = set()
        for seed in range(7, 11):
            patient = rare("small_kidney", seed)
            small = [name for name in ("kidney_left", "kidney_right") if volume_ml(patient, name) < 75]
            assert len(small) == 1
            sides.update(small)
        assert sides == {"kidney_left", "kidney_right"}

    def test_enlarged_pancreas_tail_grows_on_the_left(self, usual: Patient) -> None:
        def tail_ml(patient: Patient) -> float:
            voxels = np.argwhere(NINE.mask(patient.label.voxels, "pancreas"))
            return float((voxels[:, 0] * 4.0 - 198.0 < -45).sum() * 4.0**3 / 1000)  # left of x = -45 mm lies only the tail

        assert tail_ml(rare("enlarged_pancreas_tail")) > 1.8 * tail_ml(usual)

    def test_stomach_cavity_is_large_and_half_gas(self, usual: Patient) -> None:
        def gas_ml(patient: Patient) -> float:
            gas = (patient.image.voxels < -500) & NINE.mask(patient.label.voxels, "stomach")
            return float(gas.sum() * 4.0**3 / 1000)

        cavity = rare("stomach_cavity")
        assert volume_ml(cavity, "stomach") > 550
        assert gas_ml(cavity) > 180 > gas_ml(usual)

    @pytest.mark.parametrize("seed", range(7, 10))
    def test_metal_is_brighter_than_any_bone_and_streaks(self, seed: int) -> None:
        plain, metal = procedural_patient(COARSE, seed=seed, organs=NINE), rare("metal", seed)
        assert plain.image.voxels.max() < 1500
        assert metal.image.voxels.max() > 2000
        np.testing.assert_array_equal(metal.label.voxels, plain.label.voxels)
        changed = (metal.image.voxels != plain.image.voxels).any(axis=(0, 1))
        assert 1 <= changed.sum() < 40, "streaks lie in the slices of the metal only"

    def test_a_variant_leaves_the_rest_of_the_patient(self, usual: Patient) -> None:
        changed = rare("absent_gall_bladder")
        for name in ("aorta", "postcava", "kidney_left", "kidney_right", "spleen", "pancreas"):
            np.testing.assert_array_equal(NINE.mask(changed.label.voxels, name), NINE.mask(usual.label.voxels, name))

    def test_rate_draws_variants_and_never_two_that_exclude_each_other(self) -> None:
        knobs = Phantom(spacing=(12, 12, 12), variant_rate=0.5)
        drawn = [procedural_patient(knobs, seed=seed, organs=NINE).variants for seed in range(12)]
        assert {name for variants in drawn for name in variants} == set(load_anatomy().variants)
        assert not any({"absent_gall_bladder", "enlarged_gall_bladder"} <= set(variants) for variants in drawn)

    def test_unknown_and_contradictory_variants_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"\['large_splen'\] are unknown.*large_spleen"):
            rare("large_splen")
        with pytest.raises(ConfigError, match="excludes"):
            procedural_patient(Phantom(variants=("absent_gall_bladder", "enlarged_gall_bladder")), seed=0, organs=NINE)


class TestTexturing:
    """A hand-made label map: one ball of 40 mm radius, in a set whose second organ no file describes."""

    organs = Organs.model_validate(
        {
            "name": "two",
            "organs": [{"name": "liver", "label_id": 3, "color": "#c8604f"}, {"name": "thymus", "label_id": 9, "color": "#4fae4a"}],
        }
    )

    def ball(self, label_id: int, orientation: str = "RAS") -> Volume:
        x, y, z = np.meshgrid(*(np.arange(n) * 5.0 for n in (80, 64, 30)), indexing="ij")
        inside = (x - 260) ** 2 + (y - 160) ** 2 + (z - 75) ** 2 < 40**2
        return reorient(Volume((inside * label_id).astype(np.uint8), np.diag([5.0, 5.0, 5.0, 1.0])), orientation)

    def test_keeps_the_label_and_its_grid(self) -> None:
        label = self.ball(3, "LPS")
        patient = textured_patient(label, organs=self.organs, texture=Texture(), seed=0)
        np.testing.assert_array_equal(patient.label.voxels, label.voxels)
        np.testing.assert_array_equal(patient.image.affine, label.affine)
        assert patient.image.voxels.dtype == np.int16

    def test_is_deterministic_and_the_same_in_any_orientation(self) -> None:
        one, other = (
            textured_patient(self.ball(3, orientation), organs=self.organs, texture=Texture(), seed=1)
            for orientation in ("RAS", "ASL")
        )
        np.testing.assert_array_equal(reorient(other.image, "RAS").voxels, one.image.voxels)

    def test_an_organ_without_an_entry_looks_like_soft_tissue(self) -> None:
        patient = textured_patient(self.ball(9), organs=self.organs, texture=QUIET, seed=0)
        mean, sd = load_hounsfield().tissues["soft_tissue"].portal
        assert core_hu(patient, "thymus", self.organs).mean() == pytest.approx(mean, abs=2.8 * sd)

    def test_a_label_map_without_any_organ_still_is_a_body(self) -> None:
        empty = self.ball(0)
        patient = textured_patient(empty, organs=self.organs, texture=Texture(), seed=0)
        assert not patient.label.voxels.any()
        assert (patient.image.voxels > -200).mean() > 0.2

    def test_an_id_without_an_organ_is_refused(self) -> None:
        with pytest.raises(LabelError, match=r"label ids \[7\].*\[3, 9\]"):
            textured_patient(self.ball(7), organs=self.organs, texture=Texture(), seed=0)

    def test_a_variant_of_the_label_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="large_spleen"):
            textured_patient(self.ball(3), organs=self.organs, texture=Texture(), seed=0, variants=("large_spleen",))

    def test_metal_may_be_laid_over_a_label(self) -> None:
        label = self.ball(3)
        patient = textured_patient(label, organs=self.organs, texture=Texture(), seed=0, variants=("metal",))
        assert patient.image.voxels.max() > 2000
        np.testing.assert_array_equal(patient.label.voxels, label.voxels)


def textured_expert(case: str) -> Patient:
    label = read_volume(BTCV / f"{case}.nii.gz")
    return textured_patient(label, organs=load_organs("btcv"), texture=Texture(), seed=0, spacing=(4.0, 4.0, 4.0))


@pytest.fixture(scope="module")
def expert() -> Patient:
    return textured_expert("0001")


@needs_btcv
class TestExpertLabelMaps:
    btcv = load_organs("btcv")

    def test_resamples_both(self, expert: Patient) -> None:
        assert expert.image.shape == expert.label.shape == (96, 80, 128)
        assert same_grid(expert.image, expert.label)
        assert expert.image.orientation == "LAS"

    @pytest.mark.parametrize("name", ["spleen", "liver", "kidney_left", "kidney_right"])
    def test_organs_have_their_hounsfield_units(self, expert: Patient, name: str) -> None:
        mean, sd = load_hounsfield().tissues[name].portal
        assert core_hu(expert, name, self.btcv).mean() == pytest.approx(mean, abs=2.8 * sd + 6)

    def test_body_encloses_the_organs_and_air_the_body(self, expert: Patient) -> None:
        labels, hu = expert.label.voxels, expert.image.voxels
        ring = ~(labels > 0) & (hu < -900)
        edge = np.zeros_like(ring)
        edge[:, [0, 1, -2, -1], :] = True  # front- and backmost rows
        assert (hu[edge] < -900).mean() > 0.9
        solid = np.isin(labels, [self.btcv.label_id(n) for n in ("liver", "spleen", "kidney_left", "kidney_right")])
        assert (hu[solid] > -200).mean() > 0.995  # no organ lies in the air

    def test_absent_organs_stay_absent(self) -> None:
        patient = textured_expert("0023")
        assert "gall_bladder" not in self.btcv.present(patient.label.voxels)
        assert "liver" in self.btcv.present(patient.label.voxels)

    def test_spine_lies_behind_the_aorta(self, expert: Patient) -> None:
        ras_hu, ras_label = reorient(expert.image).voxels, reorient(expert.label).voxels
        aorta = self.btcv.mask(ras_label, "aorta")
        behind = []
        for z in np.flatnonzero(aorta.any(axis=(0, 1)))[5:-5]:
            x, y = np.argwhere(aorta[:, :, z]).mean(axis=0).astype(int)
            behind.append(ras_hu[x - 6 : x + 7, y - 16 : y - 2, z])  # 52 mm wide, from 8 to 64 mm behind
        assert (np.stack(behind) > 150).mean() > 0.2


class TestFiles:
    def test_anatomy_and_hounsfield_refuse_keys_they_do_not_know(self) -> None:
        raw = yaml.safe_load((CONFIGS / "phantom" / "anatomy.yaml").read_text())
        raw["structures"][0]["volume"] = [1, 2]
        with pytest.raises(ValidationError, match="volume"):
            type(load_anatomy()).model_validate(raw)

    def test_the_code_names_no_organ(self) -> None:
        code = (Path(__file__).parents[2] / "atlas_ray" / "data" / "phantom.py").read_text()
        assert not [name for name in load_organs("universal_32").names if name in code]

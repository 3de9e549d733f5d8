"""A folder of nnU-Net v2, trained here by the real package, says as a member what nnU-Net's own predictor says.

nnU-Net adds up windows in half precision, with weights down to 6e-8: in a volume's corners its logits are rounded to whole numbers.
Held to 1e-3 everywhere is therefore its predictor with these sums in float32; untouched, it is held to 1e-3 where it can count.
"""

import json
import multiprocessing
import multiprocessing.pool
import os
import random
import shutil
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import nibabel
import numpy as np
import pytest
import torch

from atlas_ray.exceptions import CheckpointError
from atlas_ray.organs import Organs
from atlas_ray.segmentation.members.loaded import LoadedMember
from atlas_ray.segmentation.members.nnunet import NNUNetFolder
from atlas_ray.volume import Volume, read_volume, reorient

ORGANS = Organs.model_validate(
    {
        "name": "three",
        "organs": [
            {"name": "liver", "label_id": 1, "color": "#c8604f"},
            {"name": "spleen", "label_id": 2, "color": "#9b6bd6"},
            {"name": "aorta", "label_id": 3, "color": "#e0383e"},
        ],
    }
)
SHAPE = (30, 26, 22)
pytestmark = pytest.mark.slow  # importing nnU-Net and training with it takes 15 s
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "milt": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


@contextmanager
def quiet() -> Iterator[None]:
    """nnU-Net warns of what this repository does not decide."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_ct(path: Path, seed: int, spacing: tuple[float, float, float]) -> np.ndarray:
    """Noise with two blocks; 0 at two borders, which nnU-Net cuts off. Stored in RAS. Returns the label map."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    label[5 + seed : 15 + seed, 6:16, 4:14] = 1
    label[19:26, 8:20, 12:18] = 2
    image = (rng.normal(-100, 20, SHAPE) + 150 * label).astype(np.int16)
    image[:2], image[:, :, -2:] = 0, 0
    nibabel.save(nibabel.Nifti1Image(image, np.diag([*spacing, 1.0])), path)
    return label


def seed_all(seed: int) -> None:
    """What nnU-Net draws from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's fingerprint, plans, preprocessing, and two folds of four steps each; the network made tiny in the plans."""
    seed_all(0)
    root = tmp_path_factory.mktemp("nnunet")
    raw, plans_path = root / "raw" / "Dataset101_Blocks", root / "preprocessed" / "Dataset101_Blocks" / "nnUNetPlans.json"
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for i in range(5):
        label = save_ct(raw / "imagesTr" / f"c{i}_0000.nii.gz", i, (1.5, 1.5, 2.0))
        nibabel.save(nibabel.Nifti1Image(label, np.diag([1.5, 1.5, 2.0, 1])), raw / "labelsTr" / f"c{i}.nii.gz")
    (raw / "dataset.json").write_text(json.dumps(DATASET))
    in_threads = types.SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)  # a new process imports torch for ten seconds
    with pytest.MonkeyPatch.context() as patch, quiet(), matplotlib.rc_context():  # its curves set the fonts of all plots
        for key in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{key}", str(root / key))
        patch.setenv("nnUNet_n_proc_DA", "1")
        patch.setenv("nnUNet_compile", "false")
        patch.setattr(multiprocessing, "get_context", lambda kind=None: in_threads)
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api
        from nnunetv2.utilities import utils

        patch.setattr(utils, "Pool", multiprocessing.pool.ThreadPool)  # it would fork this process and all its threads
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        threads = torch.get_num_threads()
        api.extract_fingerprint_dataset(101, num_processes=1, verbose=False, show_progress_bar=False)
        api.plan_experiment_dataset(101)
        plans = json.loads(plans_path.read_text())
        setup = plans["configurations"]["3d_fullres"]
        setup["patch_size"] = [16, 16, 16]
        setup["architecture"]["arch_kwargs"] |= {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
        }
        plans_path.write_text(json.dumps(plans))
        api.preprocess_dataset(101, configurations=("3d_fullres",), num_processes=(1,), verbose=False)
        patch.setenv("nnUNet_n_proc_DA", "0")
        for fold in (0, 1):
            seed_all(fold)
            described = {**json.loads(plans_path.read_text()), "continue_training": False}
            trainer = nnUNetTrainer(described, "3d_fullres", fold, dict(DATASET), device=torch.device("cpu"))
            trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 4, 1
            trainer.run_training()
        torch.set_num_threads(threads)
    (folder,) = (root / "results" / "Dataset101_Blocks").iterdir()
    return folder


def member(folder: Path, **settings: Any) -> NNUNetFolder:
    given = {"member": "nnunet", "name": "theirs", "path": str(folder), "orientation": "RAS", "organs": {"milt": "spleen"}}
    return NNUNetFolder.model_validate({**given, **settings})


def load(folder: Path, **settings: Any) -> LoadedMember:
    return member(folder, **settings).load(ORGANS, data_root=None, device="cpu", precision="float32")


def predictor(folder: Path, folds: tuple[int, ...]) -> Any:
    with quiet():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        made = nnUNetPredictor(tile_step_size=0.5, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        made.initialize_from_trained_model_folder(str(folder), folds)
    return made


def their_probabilities(folder: Path, path: Path, folds: tuple[int, ...], *, in_float32: bool) -> tuple[np.ndarray, np.ndarray]:
    """What nnU-Net makes of a file before its network, [a, b, c], and after it, [C, a, b, c]."""
    theirs = predictor(folder, folds)
    with quiet(), pytest.MonkeyPatch.context() as patch:
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
        from nnunetv2.inference import predict_from_raw_data as module

        if in_float32:
            weights = module.compute_gaussian
            patch.setattr(module, "compute_gaussian", lambda *args, **more: weights(*args, **more).float())
            patch.setattr(torch, "half", torch.float32)
        data, properties = SimpleITKIO().read_images([str(path)])
        preprocessor = theirs.configuration_manager.preprocessor_class(verbose=False)
        setup = (theirs.plans_manager, theirs.configuration_manager, theirs.dataset_json)
        prepared, _, _ = preprocessor.run_case_npy(data, None, properties, *setup)
        logits = theirs.predict_logits_from_preprocessed_data(torch.from_numpy(prepared))
        return prepared[0], theirs.label_manager.apply_inference_nonlin(logits).numpy()


def our_probabilities(ours: LoadedMember, image: Volume) -> tuple[np.ndarray, np.ndarray]:
    placed = ours.place(reorient(image))
    return placed.values, torch.cat([made for _, made in ours.probabilities(placed, "cpu")], dim=-1).numpy()


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 2.0), (1.1, 1.7, 2.4), (0.8, 0.8, 5.0)])
def test_probabilities_are_nnunets(trained: Path, tmp_path: Path, spacing: tuple[float, float, float]) -> None:
    """At the trained spacing, at another one, and with slices so thick that nnU-Net resamples them by themselves; two folds."""
    save_ct(path := tmp_path / "ct.nii.gz", 2, spacing)
    ours = load(trained, folds=(0, 1))
    assert ours.outputs_K == ((1,), (2,), ())
    prepared, probabilities = our_probabilities(ours, read_volume(path))
    their_input, theirs = their_probabilities(trained, path, (0, 1), in_float32=True)
    np.testing.assert_allclose(prepared, their_input, atol=1e-5)
    assert theirs[1:].std() > 0.05, "a network that says the same everywhere would prove nothing"
    np.testing.assert_allclose(probabilities, theirs[1:], atol=1e-4)


def test_half_precision_is_all_that_differs(trained: Path, tmp_path: Path) -> None:
    """The predictor untouched: within 1e-3 nearly everywhere, and in the corners as far off as its rounding."""
    save_ct(path := tmp_path / "ct.nii.gz", 2, (1.5, 1.5, 2.0))
    _, probabilities = our_probabilities(load(trained), read_volume(path))
    _, theirs = their_probabilities(trained, path, (0,), in_float32=False)
    off = np.abs(probabilities - theirs[1:])
    assert np.quantile(off, 0.95) < 1e-3
    assert off.max() < 0.2


def test_the_campaigns_grid_has_the_same_probabilities_as_bytes(trained: Path, tmp_path: Path) -> None:
    """On the member's own spacing and stored in another orientation: turned, cut, and put back where it was."""
    save_ct(path := tmp_path / "ct.nii.gz", 2, (1.5, 1.5, 2.0))
    ras = read_volume(path)
    turned = reorient(ras, "LPS")
    nibabel.save(nibabel.Nifti1Image(turned.voxels, turned.affine), tmp_path / "lps.nii.gz")
    ours = load(trained, orientation="LPS")  # as if its training files had lain so
    _, theirs = their_probabilities(trained, tmp_path / "lps.nii.gz", (0,), in_float32=True)
    bytes_KXYZ = ours.predict(ras, ras.shape, device="cpu", memory_gb=0)
    assert bytes_KXYZ.shape == (3, *SHAPE)
    seen_CXYZ = theirs.transpose(0, 3, 2, 1)[:, ::-1, ::-1]  # z y x in LPS -> x y z in RAS, without the borders that are 0
    np.testing.assert_allclose(bytes_KXYZ[:2, 2:, :, :-2], seen_CXYZ[1:] * 255, atol=0.51)
    assert not bytes_KXYZ[:, :2].any()
    assert not bytes_KXYZ[:, :, :, -2:].any()
    assert not bytes_KXYZ[2].any()


def test_regions_are_sigmoids_of_their_own(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "regions")
    regions = {"background": 0, "liver": [1, 2], "spleen": 2, "vessel": [1, 3]}
    described = {**DATASET, "labels": regions, "regions_class_order": [1, 2, 3]}
    (folder / "dataset.json").write_text(json.dumps(described))
    save_ct(path := tmp_path / "ct.nii.gz", 1, (1.5, 1.5, 2.0))
    ours = load(folder, organs={"vessel": "spleen"})
    assert ours.outputs_K == ((0,), (1, 2), ())
    _, probabilities = our_probabilities(ours, read_volume(path))
    _, theirs = their_probabilities(folder, path, (0,), in_float32=True)
    np.testing.assert_allclose(probabilities[0], theirs[0], atol=1e-4)
    np.testing.assert_allclose(probabilities[1], np.maximum(theirs[1], theirs[2]), atol=1e-4)


def test_identity_is_of_weights_plans_and_settings(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    first = member(folder).identity(None)
    assert first == member(trained, name="elsewhere").identity(None)
    assert first != member(folder, folds=(1,)).identity(None)
    assert first != member(folder, organs={}).identity(None)
    plans = folder / "plans.json"
    plans.write_text(plans.read_text().replace('"patch_size": [', '"patch_size":  ['))
    assert first != member(folder).identity(None)
    with pytest.raises(CheckpointError, match=f"has sha256 [0-9a-f]{{64}}; {first} is asked for"):
        member(folder, sha256=first).identity(None)


def change(folder: Path, name: str, **values: Any) -> None:
    content = json.loads((folder / name).read_text())
    target = content["configurations"]["3d_fullres"] if name == "plans.json" else content
    target.update(values)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"configuration": "3d_lowres"}, r"no configuration '3d_lowres'; it has 2d, 3d_fullres"),
        ({"configuration": "2d"}, r"patches of \[.*\]; 3D ones"),
        ({"folds": (7,)}, r"fold_7/checkpoint_final.pth is missing"),
        ({"orientation": None}, r"trained with SimpleITKIO, which keeps images as they are stored: say how that was"),
        ({"organs": {"kidney": "liver"}}, r"no label 'kidney'; it has background \(0\), liver \(1\), milt \(2\)"),
        ({"organs": {"liver": "lung"}}, r"label 'liver' is to be 'lung'; the campaign has liver, spleen, aorta"),
        ({"organs": {"liver": None}}, r"knows none of liver, spleen, aorta; it has background \(0\), liver \(1\), milt \(2\)"),
    ],
)
def test_what_cannot_be_is_named(trained: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        load(trained, **settings)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("plans.json", {"normalization_schemes": ["RGBTo01Normalization"]}, r"normalizes with 'RGBTo01Normalization'; CTNorm"),
        ("plans.json", {"resampling_fn_data": "resample_torch_fornnunet"}, r"resamples with 'resample_torch_fornnunet'"),
        (
            "plans.json",
            {"architecture": {"network_class_name": "os.system", "arch_kwargs": {}}},
            r"network 'os.system'; PlainConvUNet",
        ),
        ("plans.json", {"previous_stage": "3d_lowres"}, r"second stage of a cascade"),
        ("dataset.json", {"channel_names": {"0": "CT", "1": "PET"}}, r"2 image channels \(CT, PET\)"),
        (
            "dataset.json",
            {"labels": {"background": 0, "milt": 1}},
            r"fold_0/checkpoint_final.pth does not fit its network \(\d+ of \d+ tensors match\): \d+ of another shape: "
            r".*decoder.seg_layers.0.weight \(3, 8, 1, 1, 1\), not \(2, 8, 1, 1, 1\)",
        ),
    ],
)
def test_a_folder_that_contradicts_itself_is_named(
    trained: Path, tmp_path: Path, name: str, values: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(trained, tmp_path / "changed")
    change(folder, name, **values)
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_a_layer_that_is_not_torchs_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "layer")
    plans = folder / "plans.json"
    plans.write_text(plans.read_text().replace("torch.nn.LeakyReLU", "os.system"))
    with pytest.raises(CheckpointError, match=r"layer 'os.system'; layers of torch.nn are allowed"):
        load(folder)


def test_a_pickle_that_runs_something_is_refused(trained: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was_run"),)

    folder = shutil.copytree(trained, tmp_path / "bad")
    torch.save({"network_weights": {}, "logging": Bad()}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(CheckpointError, match=r"checkpoint_final.pth is damaged, or holds more than tensors and plain values"):
        load(folder)
    assert not (tmp_path / "was_run").exists()


def test_older_plans_describe_the_same_network(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "older")
    plans = json.loads((folder / "plans.json").read_text())
    setup = plans["configurations"]["3d_fullres"]
    arguments = setup.pop("architecture")["arch_kwargs"]
    setup |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
        "n_conv_per_stage_encoder": arguments["n_conv_per_stage"],
        "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"],
    }
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    (folder / "plans.json").write_text(json.dumps(plans))
    windows = torch.rand(1, 1, 16, 16, 16)
    assert torch.equal(load(folder, configuration="mine").forward(windows), load(trained).forward(windows))

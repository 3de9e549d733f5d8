"""The configuration: one file, every mistake in it named in one line, nothing lost between writing and reading it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas_ray.config import dump_config, flat, load_config
from atlas_ray.exceptions import ConfigError
from atlas_ray.organs import CONFIGS

SMALL: dict[str, Any] = {
    "name": "small",
    "workspace": "ws",
    "datasets": [{"source": "phantom", "name": "pool", "count": 1, "split": "pool"}],
    "architectures": [{"architecture": "nnunet", "features": [4, 8]}, {"architecture": "unet", "features": [4, 8]}],
    "patches": {"patch": [16, 16, 16]},
    "inference": {"window": [16, 16, 16]},
}


def write(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "where", "meant"),
    [
        ({"preprocesing": {}}, "preprocesing", "preprocessing"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat", "learning_rate"),
        ({"patches": {"patch": [16, 16, 16], "augmentation": {"noise": 1}}}, "patches.augmentation.noise", "noise_hu"),
        ({"attention": {"mode": "faithful", "opening_voxel": 1}}, "attention.faithful.opening_voxel", "opening_voxels"),
        (
            {"architectures": [{"architecture": "unet", "feature": [4, 8]}]},
            "architectures.0.unet.feature",
            "features",
        ),
        (
            {"datasets": [*SMALL["datasets"], {"source": "phantom", "name": "b", "count": 1, "split": "pool", "sede": 3}]},
            "datasets.1.phantom.sede",
            "seed",
        ),
    ],
    ids=["top level", "section", "section in a section", "union member", "list of unions", "second of a list"],
)
def test_a_misspelt_key_is_one_line_with_file_path_and_nearest_key(
    tmp_path: Path, changes: dict[str, Any], where: str, meant: str
) -> None:
    path = write(tmp_path, **changes)
    assert refusal(path) == f"{path}: {where}: no such key; did you mean {meant!r}?"


def test_a_key_like_no_other_is_answered_with_those_allowed(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, tracking={"zzz": 1}))
    assert message.endswith("tracking.zzz: no such key; allowed are experiment, uri")


def test_every_mistake_gets_its_own_line(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, clustr={}, training={"steps": 0}))
    assert len(message.splitlines()) == 2
    assert all(line.startswith(str(tmp_path)) for line in message.splitlines())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"training": {"steps": "many"}}, ("training.steps", "integer", "'many'")),
        ({"training": {"batch": 0}}, ("training.batch", "greater than 0", "0")),
        ({"preprocessing": {"window_hu": [250, -175]}}, ("preprocessing", "must rise")),
        ({"attention": {"mode": "thorough"}}, ("attention", "'faithful'", "'physical'")),
        ({"architectures": [{"architecture": "resnet"}]}, ("architectures.0", "'swin_unetr'", "'nnunet'", "'unet'")),
        ({"name": "no/slash"}, ("name", "pattern")),
        ({"datasets": []}, ("datasets", "at least 1")),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = refusal(write(tmp_path, **changes))
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message


@pytest.mark.parametrize(("section", "key"), [("patches", "patch"), ("inference", "window")])
def test_a_patch_the_networks_cannot_halve_is_named(tmp_path: Path, section: str, key: str) -> None:
    message = refusal(write(tmp_path, **{section: {key: [16, 15, 16]}}))
    assert f"{section}.{key} [16, 15, 16]: nnunet needs multiples of 2" in message


def test_an_architecture_listed_twice_is_refused(tmp_path: Path) -> None:
    assert "each may be listed once" in refusal(write(tmp_path, architectures=[{"architecture": "unet", "features": [4, 8]}] * 2))


def test_a_pace_for_an_architecture_the_campaign_lacks_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, training={"per_architecture": {"swin_unetr": {"steps": 5}}}))
    assert "training.per_architecture names ['swin_unetr']; the campaign has ['nnunet', 'unet']" in message


@pytest.mark.parametrize("inference", [{"overlaps": {"swin_unetr": 0.25}}, {"coarse": {"architecture": "swin_unetr"}}])
def test_an_inference_by_an_architecture_the_campaign_lacks_is_refused(tmp_path: Path, inference: dict[str, Any]) -> None:
    message = refusal(write(tmp_path, inference={"window": [16, 16, 16], **inference}))
    assert "inference names ['swin_unetr'] in overlaps or coarse; the campaign has ['nnunet', 'unet']" in message


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path / "absent.yaml")
    assert "absent.yaml" in message
    assert "abdomen8.yaml, campaign.yaml" in message


@pytest.mark.parametrize(
    ("text", "part"), [("a: [1", "not valid YAML"), ("- a\n- b\n", "keys and values"), ("", "keys and values")]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "campaign.yaml"
    path.write_text(text)
    message = refusal(path)
    assert str(path) in message
    assert part in message


def test_a_mistake_in_the_configuration_ends_a_job_with_exit_code_2() -> None:
    assert ConfigError.exit_code == 2


# --- --set ----------------------------------------------------------------------------------------------------------


def test_set_reaches_sections_lists_and_keys_the_file_does_not_write(tmp_path: Path) -> None:
    campaign = load_config(
        write(tmp_path),
        [
            "training.steps=7",
            "architectures.0.features=[8, 16]",
            "patches.patch.2=32",
            "training.per_architecture.unet.batch=3",
            "tracking.uri=http://mlflow:5000/?a=b",
        ],
    )
    assert campaign.training.steps == 7
    assert campaign.architectures[0].features == (8, 16)  # type: ignore[union-attr]
    assert campaign.patches.patch == (16, 16, 32)
    assert campaign.training.of("unet").batch == 3
    assert campaign.training.of("nnunet").batch == 2
    assert campaign.tracking.uri == "http://mlflow:5000/?a=b"  # only the first = separates


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    """PyYAML reads 1e-4 as text: YAML 1.1 wants 1.0e-4."""
    path = write(tmp_path)
    path.write_text(path.read_text() + "finetuning: {learning_rate: 3e-5}\n")
    campaign = load_config(path, ["training.learning_rate=1e-4"])
    assert (campaign.training.learning_rate, campaign.finetuning.learning_rate) == (0.0001, 0.00003)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("training.steps", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("architectures.2.features=[4]", "'2' must be a number from 0 to 1"),
        ("architectures.unet.features=[4]", "'unet' must be a number from 0 to 1"),
        ("patches.patch.-1=4", "'-1' must be a number from 0 to 2"),
        ("patches.patch.0.x=4", "item 0 holds the value 16, not keys"),
        ("training.steps=[1", "not valid YAML"),
        ("trainin.steps=4", "did you mean 'training'?"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted(tmp_path: Path, override: str, part: str) -> None:
    message = refusal(write(tmp_path), override)
    assert len(message.splitlines()) == 1
    assert part in message


# --- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_loads(path: Path) -> None:
    campaign = load_config(path.stem)
    assert campaign.name == path.stem
    assert campaign.load_organs().names


def test_relative_paths_are_relative_to_where_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, data_root="scans")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    campaign = load_config(path)
    assert (campaign.workspace, campaign.data_root) == (str(elsewhere / "ws"), str(elsewhere / "scans"))
    assert campaign.tracking_uri == f"sqlite:///{elsewhere}/ws/mlflow.db"
    assert load_config(path, ["data_root=null"]).data_root is None


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config(write(tmp_path, workspace="~/ws")).workspace == str(tmp_path / "ws")


def test_an_organ_set_beside_the_configuration_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('{name: mine, organs: [{name: liver, label_id: 3, color: "#112233"}]}')
    campaign = load_config(write(tmp_path, organs="mine.yaml"))
    assert campaign.organs == str(tmp_path / "mine.yaml")
    assert campaign.load_organs().names == ("liver",)


@pytest.mark.parametrize("name", ["demo", "abdomen8", "semisynthetic"])
def test_a_written_configuration_reads_back_as_the_same_campaign(tmp_path: Path, name: str) -> None:
    campaign = load_config(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(campaign))
    assert load_config(path) == campaign


def test_tracking_gets_every_knob_by_its_path(tmp_path: Path) -> None:
    knobs = flat(load_config(write(tmp_path)))
    expected = {
        "name": "small",
        "data_root": "null",
        "training.learning_rate": "0.0001",  # a default
        "patches.patch": "[16, 16, 16]",
        "architectures.1.architecture": "unet",
        "architectures.1.features": "[4, 8]",
        "datasets.0.split": "pool",
        "patches.augmentation.rotate_deg": "10.0",
        "cluster.use_gpu": "false",
        "training.per_architecture": "{}",
    }
    assert {key: knobs.get(key) for key in expected} == expected
    assert {key.partition(".")[0] for key in knobs} >= {"attention", "strategy", "effort", "stop", "annotation", "pseudo_labels"}


def test_criteria_that_no_gpu_kernel_has_are_refused_before_anything_runs(tmp_path: Path) -> None:
    attention = {"mode": "physical", "criteria": [{"criterion": "disagreement"}, {"criterion": "overlap"}]}
    path = write(tmp_path, attention=attention)
    assert load_config(path).cluster.gpus_per_task == 0
    wanted = "attention on a GPU has predictive_entropy, disagreement, overlap; this has disagreement, overlap"
    assert wanted in refusal(path, "cluster.gpus_per_task=0.5")


def test_a_workspace_in_a_bucket_needs_servers_for_what_sqlite_does(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: c\nworkspace: s3://bucket/c\ndatasets: [{source: phantom, name: p, count: 1, split: pool}]\n")
    with pytest.raises(ConfigError, match=r"annotation\.database and tracking\.uri"):
        load_config(file)
    campaign = load_config(file, ["annotation.database=postgresql+psycopg://db/atlas", "tracking.uri=http://mlflow:5000"])
    assert campaign.workspace == "s3://bucket/c"
    assert str(campaign.open_workspace().manifest) == "s3://bucket/c/manifest.jsonl"

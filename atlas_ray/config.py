"""A campaign's configuration: one YAML file, composed of the sections that live beside the code that reads them.

A relative `workspace` or `data_root` is relative to the folder the job runs in; a relative path inside a dataset is relative to
`data_root`. There is no configuration by environment variable and no inheritance between files.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from atlas_ray.annotation.database import sqlite_url
from atlas_ray.annotation.oracle import OracleAnnotator
from atlas_ray.annotation.queue import Annotation
from atlas_ray.attention.criteria import Attention, PhysicalAttention
from atlas_ray.data.ingest import IngestChecks
from atlas_ray.data.label_quality import LabelQuality
from atlas_ray.data.patches import PatchSampling
from atlas_ray.data.preprocess import Preprocessing
from atlas_ray.data.sources import Source
from atlas_ray.evaluation.components import Rules
from atlas_ray.exceptions import ConfigError
from atlas_ray.organs import CONFIGS, Organs, load_organs
from atlas_ray.prioritization.effort import Effort
from atlas_ray.prioritization.stopping import StopRule, TopCaseNeedsNone
from atlas_ray.prioritization.strategies import AttentionSize, Strategy
from atlas_ray.redaction import without_passwords
from atlas_ray.schema import Fraction, Schema
from atlas_ray.segmentation.anatomy import require_organs
from atlas_ray.segmentation.architectures import Architecture, NNUNet, SwinUNETR, UNet, valid_patch
from atlas_ray.segmentation.gate import Gate
from atlas_ray.segmentation.inference import Inference
from atlas_ray.segmentation.members.kinds import Member
from atlas_ray.segmentation.pseudo_labels import PseudoLabels
from atlas_ray.segmentation.schedule import Schedule
from atlas_ray.storage import absolute, is_url
from atlas_ray.strict_yaml import parse_yaml, read_yaml
from atlas_ray.workspace import Workspace

LARGEST_NUMBER = 2.0**53  # of which a float still holds every integer


class Cluster(Schema):
    """What the jobs ask Ray for. The defaults run on a laptop.

    Args:
        use_gpu: networks on GPUs; without, on CPUs.
        train_workers: data-parallel workers of one training.
        cpus_per_worker: of each training worker (its torch threads on a CPU).
        actors: most ensemble actors at once.
        gpus_per_actor: a fraction lets several actors share a GPU.
        cpus_per_actor: of each ensemble actor (its torch threads on a CPU).
        gpus_per_task: share of a GPU for each task that finishes a case; with it attention runs there.
        task_memory_gb: memory request of a task that reads or finishes a case, so that few large CT are in memory at once.
        cases_per_stream: after which the stream ends and begins anew, with new actors, so that the driver's memory stays flat;
            small cases that share a block count as one.
        max_attempts: starts a case gets before it is quarantined as one that kills its process.
        patience_s: how long is tried again what may pass by itself: a full disk, a share or bucket that does not answer, the
            annotation database away.
        max_failed_fraction: above it a job ends with an error even though the other cases are done.
        train_failures: worker-group restarts before a training gives up.
        recompute_for_new_code: predict again what an older version of the code predicted.
    """

    use_gpu: bool = False
    train_workers: PositiveInt = 1
    cpus_per_worker: PositiveInt = 1
    actors: PositiveInt = 1
    gpus_per_actor: PositiveFloat = 1.0
    cpus_per_actor: PositiveInt = 1
    gpus_per_task: NonNegativeFloat = 0.0
    task_memory_gb: PositiveFloat = 1.0
    cases_per_stream: PositiveInt = 2000
    max_attempts: PositiveInt = 3
    patience_s: NonNegativeFloat = 300.0
    max_failed_fraction: Fraction = 0.05
    train_failures: int = 3
    recompute_for_new_code: bool = True


class Tracking(Schema):
    """Where MLflow keeps the story.

    Args:
        uri: of a tracking server, or "sqlite:////absolute/mlflow.db"; None is a SQLite file in the workspace.
        experiment: name; None is the campaign's.
    """

    uri: str | None = None
    experiment: str | None = None


class Simulation(Schema):
    """A study of query strategies: the campaign is played once per strategy, annotator and seed (`jobs.simulate`).

    All of them share round 0's cases, networks and predictions, and get the same minutes.

    Args:
        rounds: of annotation; each is followed by fine-tuning.
        minutes: of each round, as the oracle counts them; what one round oversteps the next one has less.
        strategies: name -> strategy; the first is compared with each of the others.
        annotators: name -> oracle.
        seeds: of fine-tuning, of the strategy and of the annotator's hand.
        at_once: arms that are played side by side, each on its share of the CPUs.
        margin: how far below the Dice of the fully labeled reference counts as reached.
        modes: of attention that are compared on the holdout in the end; each predicts the cases once more.
        alpha: of calibrated attention in that comparison.
        wrong_below: a variant counts as got wrong when an organ's Dice lies this far below its median over ordinary cases.
    """

    rounds: PositiveInt = 3
    minutes: PositiveFloat = 60.0
    strategies: dict[str, Strategy] = Field(min_length=2)
    annotators: dict[str, OracleAnnotator] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    at_once: PositiveInt = 2
    margin: Fraction = 0.01
    modes: tuple[Literal["faithful", "physical", "calibrated"], ...] = ("faithful", "physical", "calibrated")
    alpha: float = Field(default=0.1, ge=0.001, lt=1)
    wrong_below: Fraction = 0.1
    rules: Rules = Rules()


class Campaign(Schema):
    """One campaign from first ingest to last round. Defaults are the paper's wherever the paper states one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    workspace: str
    data_root: str | None = None
    organs: str = "abdomenatlas_1_0"
    datasets: tuple[Source, ...] = Field(min_length=1)
    checks: IngestChecks = IngestChecks()
    preprocessing: Preprocessing = Preprocessing()
    architectures: tuple[Architecture, ...] = (SwinUNETR(), NNUNet(), UNet())
    members: tuple[Member, ...] = ()
    patches: PatchSampling = PatchSampling()
    training: Schedule = Schedule()
    finetuning: Schedule = Schedule(steps=10_000)
    gate: Gate | None = Gate()
    inference: Inference = Inference()
    pseudo_labels: PseudoLabels = PseudoLabels()
    attention: Attention = PhysicalAttention()
    strategy: Strategy = AttentionSize()
    effort: Effort = Effort()
    label_quality: LabelQuality = LabelQuality()
    stop: StopRule = TopCaseNeedsNone()
    annotation: Annotation = Annotation()
    evaluation: Rules = Rules()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()
    simulation: Simulation | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> "Campaign":
        names = [a.architecture for a in self.architectures]
        if len(set(self.ensemble_names)) < len(self.ensemble_names):
            raise ValueError(f"architectures and members {list(self.ensemble_names)}: each may be listed once")
        if not self.ensemble_names:
            raise ValueError("neither architectures nor members: an ensemble needs one network at least")
        for architecture in self.architectures:
            for what, edges in (("patches.patch", self.patches.patch), ("inference.window", self.inference.window)):
                if min(edges) < 1 or not valid_patch(architecture, edges):
                    name, divisor = architecture.architecture, architecture.divisor
                    raise ValueError(f"{what} {list(edges)}: {name} needs multiples of {divisor}, one of them larger")
        for section in ("training", "finetuning"):
            if unknown := sorted(set(getattr(self, section).per_architecture) - set(names)):
                raise ValueError(f"{section}.per_architecture names {unknown}; the campaign has {names}")
        if unknown := sorted(set(self.inference.architectures) - set(names)):
            raise ValueError(f"inference names {unknown} in overlaps or coarse; the campaign has {names}")
        if is_url(self.workspace):
            missing = {"annotation.database": self.annotation.database, "tracking.uri": self.tracking.uri}
            if unset := [key for key, value in missing.items() if not value]:
                raise ValueError(f"workspace {self.workspace}: a bucket holds no SQLite file; set {' and '.join(unset)}")
        given, on_gpus = self.attention.criterion_names, type(self.attention)().criterion_names
        if self.cluster.gpus_per_task and given != on_gpus:
            raise ValueError(f"cluster.gpus_per_task: attention on a GPU has {', '.join(on_gpus)}; this has {', '.join(given)}")
        return self

    @property
    def architecture_names(self) -> tuple[str, ...]:
        return tuple(a.architecture for a in self.architectures)

    def registered_model(self, architecture: str) -> str:
        """Name of an architecture's networks in MLflow's registry."""
        return f"{self.name}-{architecture}"

    @property
    def ensemble_names(self) -> tuple[str, ...]:
        """Whose probabilities make a pseudo-label: the architectures, trained here, then the members, trained by others."""
        return (*self.architecture_names, *(member.name for member in self.members))

    def open_workspace(self) -> Workspace:
        return Workspace(self.workspace)

    def load_organs(self) -> Organs:
        return load_organs(self.organs)

    @property
    def database_url(self) -> str:
        """Of the annotation database: configured, or a SQLite file in the workspace."""
        return self.annotation.database or sqlite_url(self.open_workspace().annotation_db)

    @property
    def has_database(self) -> bool:
        """Whether there is an annotation database: opening a file that is not there would make one."""
        return self.annotation.database is not None or self.open_workspace().annotation_db.exists()

    @property
    def tracking_uri(self) -> str:
        return self.tracking.uri or f"sqlite:///{self.open_workspace().mlflow_db}"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Campaign:
    """Read a campaign's YAML and apply `key.path=value` overrides.

    Args:
        path: the file, or the name of one in configs/.
        overrides: each "key.path=value"; the value is read as YAML, list items by number ("architectures.0.feature_size=24").

    Raises:
        ConfigError: no such file, no valid YAML, or a key or value that is not allowed; names file, path and nearest key. Also an
            anatomical rule with an organ that the campaign lacks.
    """
    path = _find(path)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, such as `name: my_campaign`")
    for override in overrides:
        _apply(content, override)
    if strange := _numbers_out_of_range(content):
        raise ConfigError(f"{path}: {strange}: a number that cannot be kept; finite ones up to {LARGEST_NUMBER:.0e} are allowed")
    try:
        campaign = Campaign.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, e) for e in _causes(error))) from error
    organs = _organs_path(campaign.organs, path)
    if rules := campaign.pseudo_labels.anatomy:
        require_organs(rules, load_organs(organs))
    return campaign.model_copy(
        update={
            "workspace": absolute(campaign.workspace),
            "data_root": campaign.data_root and absolute(campaign.data_root),
            "organs": organs,
        }
    )


def _numbers_out_of_range(value: Any, where: str = "") -> str:
    """The key of the first number that JSON cannot carry or a float cannot hold exactly; "" where there is none."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:  # NaN is not below anything
        return where or "campaign"
    return next((found for key, one in inner if (found := _numbers_out_of_range(one, f"{where}.{key}".lstrip(".")))), "")


def _find(path: str | Path) -> Path:
    for candidate in (Path(path), CONFIGS / f"{path}", CONFIGS / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.name for p in CONFIGS.glob("*.yaml")))
    raise ConfigError(f"configuration {str(path)!r} not found; a path or one of configs/: {known}")


def _organs_path(organs: str, config: Path) -> str:
    """A YAML file beside the configuration is meant relative to it; a name stays a name."""
    if not organs.endswith((".yaml", ".yml")):
        return organs
    beside = config.parent / organs
    return str(beside.absolute() if beside.is_file() else Path(organs).absolute())


def dump_config(campaign: Campaign) -> str:
    """The whole configuration as YAML, defaults included. Addresses are written without their passwords."""
    return yaml.safe_dump(_without_passwords(json.loads(campaign.model_dump_json())), sort_keys=False)


def _without_passwords(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_passwords(inner) for inner in value]
    return without_passwords(value) if isinstance(value, str) else value


def flat(campaign: Campaign) -> dict[str, str]:
    """Every knob as "section.key" -> text, for tracking; without passwords, as `dump_config`."""
    result: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            for index, inner in enumerate(value):
                walk(f"{prefix}.{index}", inner)
        else:
            result[prefix] = json.dumps(value) if not isinstance(value, str) else value

    walk("", _without_passwords(json.loads(campaign.model_dump_json())))
    return result


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {without_passwords(override)!r}: write key.path=value")
    *parents, last = key.split(".")
    node: Any = content
    for parent in parents:
        if isinstance(node, list):
            node = _item(node, parent, override)
            if not isinstance(node, dict | list):
                raise ConfigError(without_passwords(f"--set {override!r}: item {parent} holds the value {node!r}, not keys"))
        else:
            if not isinstance(node.get(parent), dict | list):
                node[parent] = {}
            node = node[parent]
    value = parse_yaml(text, where=f"--set {without_passwords(override)!r}")
    if isinstance(node, list):
        _item(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _item(node: list[Any], index: str, override: str) -> Any:
    if not index.isdigit() or int(index) >= len(node):
        raise ConfigError(f"--set {without_passwords(override)!r}: {index!r} must be a number from 0 to {len(node) - 1}")
    return node[int(index)]


def _causes(error: ValidationError) -> list[Any]:
    """Its errors without those that only follow: a list counts as empty when its one item is wrong."""
    errors = error.errors()
    deeper = {e["loc"][:n] for e in errors for n in range(len(e["loc"]))}
    return [e for e in errors if e["loc"] not in deeper]


def _explain(path: Path, error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where[-1], _allowed_keys(where[:-1]), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; allowed are {', '.join(_allowed_keys(where[:-1]))}"
        return f"{path}: {'.'.join(where)}: no such key{hint}"
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | list) else ""
    return without_passwords(f"{path}: {'.'.join(where) or 'campaign'}: {error['msg'].removeprefix('Value error, ')}{shown}")


def _allowed_keys(where: Sequence[str]) -> list[str]:
    """Keys the section at `where` knows. The location names the class of a union by its discriminator's value."""
    schema = Campaign.model_json_schema()
    node: Any = schema
    for part in where:
        node = _resolve(schema, node)
        node = node.get("properties", {}).get(part) or _union_member(schema, node, part) or node.get("items") or node
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: Any) -> Any:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def _union_member(schema: dict[str, Any], node: Any, part: str) -> Any:
    for holder in (node, _resolve(schema, node.get("items", {})), *node.get("prefixItems", [])):
        mapping = holder.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            return {"$ref": mapping[part]}
    return None

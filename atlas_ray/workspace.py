"""Where everything of a campaign lies. The only module that builds paths.

    <root>/
      manifest.jsonl              one Case per line
      quarantine.jsonl            one Quarantined per line, every step's
      campaign.yaml               the configuration as resolved
      annotation.db               queue and revisions, unless a database URL is configured
      mlflow.db, mlartifacts/     tracking, unless a server is configured
      synthetic/<dataset>/        generated CT, where a dataset asks for them
      labels/<case>.nii.gz        ground truth on the image's own grid, label ids of the campaign's organ set
      truth/<case>.nii.gz         the oracle's and the evaluation's reference label
      ingested/<case>.json        what ingest found, so that an unchanged case is not read again
      ingest.html                 what was ingested, with plots and pictures
      cache/<key>/<case>/         training volumes at the networks' spacing
      lock/<number>.json          which job has the workspace
      attempts/<step>/<case>.<n>  the ledger of started attempts
      checkpoints/<round>/<architecture>.pt
      train/                      Ray Train's storage
      tracking_backlog.jsonl      what MLflow could not be told
      rounds/<round>/
        state.json                steps, when they were started and finished
        predictions/<case>/       pseudo_label, heat, attention/<organ>, architectures/<name>, components.jsonl,
                                      anatomy.json where it was corrected, SHA256SUMS, scores.json
        tables/scores/, tables/components/   what the predictions' small files say, in Parquet
        priority.csv, priority.parquet, plots
        annotations/<case>/       label.nii.gz, provenance.json: the merged current truth after this round
        evaluation_<split>.json, record.json, reports/
        label_quality.csv, .parquet, label_quality/<case>.json: what the networks think of given labels
        release/<layout>/         what was exported
      other_attention/<mode>/     a workspace: the same networks' predictions, looked at with another attention

Every file appears whole or not at all, and a step's result is written last: if it is there, the step is done.
"""

import functools
import hashlib
import json
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import AttentionComponent, Case, CaseScores, Quarantined, RoundState
from atlas_ray.schema import Schema
from atlas_ray.storage import place, stamps, write_atomically

Record = TypeVar("Record", bound=Schema)
RESULT = "scores.json"  # of a prediction, written last
MERGED = "provenance.json"  # of an annotation, written last
SUMS = "SHA256SUMS"  # of a folder's files


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, name: str, text: str) -> None:
    """Write a folder's checksums, and then its result: a small file that means, by being there, that all the others are.

    Checksums have the form of sha256sum, which checks them: `sha256sum --check SHA256SUMS`.
    """
    sums = {file.relative_to(folder).as_posix(): file_sha256(file) for file in folder.rglob("*") if file.is_file()}
    sums = {name: digest for name, digest in sums.items() if name != SUMS}
    sums[name] = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(folder / SUMS, "".join(f"{digest}  {file}\n" for file, digest in sorted(sums.items())))
    write_atomically(folder / name, text)


def read_sums(folder: Path) -> dict[str, str]:
    """File -> sha256, as `seal` wrote them; {} where a version before checksums wrote the folder."""
    path = folder / SUMS
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def read_lines(path: Path, record: type[Record]) -> list[Record]:
    """Records of a JSON-lines file, [] where there is none. Raises WorkspaceError naming the line that does not parse."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            records.append(record.model_validate_json(line))
        except ValidationError as error:
            raise WorkspaceError(f"{path}, line {number}: not a {record.__name__}: {error.errors()[0]['msg']}") from error
    return records


def write_lines(path: Path, records: Iterable[Schema]) -> None:
    write_atomically(path, "".join(record.model_dump_json() + "\n" for record in records))


@functools.lru_cache(maxsize=4)
def _parsed_manifest(manifest: Path, written: tuple[int, int, int]) -> dict[str, Case]:
    """By case id. 100,000 lines take a second, and every step asks for them.

    Args:
        written: changes when the file does.
    """
    return {case.case_id: case for case in read_lines(manifest, Case)}


class Workspace:
    """Path-maker and small-file reader of one campaign's folder.

    Args:
        root: absolute folder, or the URL of one in a bucket; made on first write.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = place(root).absolute()

    # --- campaign ---
    @property
    def manifest(self) -> Path:
        return self.root / "manifest.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine.jsonl"

    @property
    def config(self) -> Path:
        return self.root / "campaign.yaml"

    @property
    def annotation_db(self) -> Path:
        return self.root / "annotation.db"

    @property
    def pseudonym_key(self) -> Path:
        """Of the names in de-identified releases; whoever has it can tell whether a name is somebody's."""
        return self.root / "pseudonym.key"

    @property
    def mlflow_db(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.root / "mlartifacts"

    @property
    def caches(self) -> Path:
        return self.root / "cache"

    @property
    def train_storage(self) -> Path:
        return self.root / "train"

    @property
    def tracking_backlog(self) -> Path:
        return self.root / "tracking_backlog.jsonl"

    @property
    def compiled(self) -> Path:
        """What torch.compile made of the networks, for the next process."""
        return self.root / "compiled"

    def train_states(self, round_index: int) -> list[Path]:
        """Ray Train's folders of a round's trainings (their names: steps.train)."""
        folder = self.train_storage
        return sorted(folder.glob(f"*-r{round_index:03d}-*")) if folder.exists() else []

    def synthetic(self, dataset: str) -> Path:
        return self.root / "synthetic" / dataset

    def label(self, case_id: str) -> Path:
        return self.root / "labels" / f"{case_id}.nii.gz"

    def truth(self, case_id: str) -> Path:
        return self.root / "truth" / f"{case_id}.nii.gz"

    def cache(self, key: str, case_id: str) -> Path:
        return self.caches / key / case_id

    def ingested(self, case_id: str) -> Path:
        return self.root / "ingested" / f"{case_id}.json"

    @property
    def ingest_page(self) -> Path:
        """What was ingested, with pictures."""
        return self.root / "ingest.html"

    @property
    def locks(self) -> Path:
        return self.root / "lock"

    def attempts(self, step: str) -> Path:
        return self.root / "attempts" / step

    def attempt(self, step: str, case_id: str, number: int) -> Path:
        return self.attempts(step) / f"{case_id}.{number}"

    def checkpoints(self, round_index: int) -> Path:
        return self.root / "checkpoints" / f"{round_index:03d}"

    def checkpoint(self, round_index: int, architecture: str) -> Path:
        return self.checkpoints(round_index) / f"{architecture}.pt"

    def last_checkpoint(self, round_index: int, architecture: str) -> Path:
        """The weights of the last step, where the checkpoint holds the best ones."""
        return self.checkpoint(round_index, architecture).with_suffix(".last.pt")

    def candidate(self, round_index: int, architecture: str) -> Path:
        """Fine-tuned weights that the gate refused; the checkpoint is then the champion's."""
        return self.checkpoint(round_index, architecture).with_suffix(".candidate.pt")

    def arm(self, name: str) -> Path:
        """The workspace of one arm of a simulation."""
        return self.root / "arms" / name

    @property
    def simulation_report(self) -> Path:
        return self.root / "simulation.html"

    @property
    def simulation_results(self) -> Path:
        return self.root / "simulation.json"

    # --- one round ---
    def round(self, round_index: int) -> Path:
        return self.root / "rounds" / f"{round_index:03d}"

    def state(self, round_index: int) -> Path:
        return self.round(round_index) / "state.json"

    def priority_csv(self, round_index: int) -> Path:
        return self.round(round_index) / "priority.csv"

    def priority_parquet(self, round_index: int) -> Path:
        return self.round(round_index) / "priority.parquet"

    def budget(self, round_index: int) -> Path:
        return self.round(round_index) / "budget.json"

    def plot(self, round_index: int, name: str) -> Path:
        return self.round(round_index) / "plots" / f"{name}.png"

    def evaluation(self, round_index: int, split: str = "holdout") -> Path:
        return self.round(round_index) / f"evaluation_{split}.json"

    def report(self, round_index: int, name: str) -> Path:
        """What `jobs.evaluate` measured: NAME.json, and its tables as NAME_*.csv beside it."""
        return self.round(round_index) / "reports" / f"{name}.json"

    def other_attention(self, mode: str) -> Path:
        """A workspace within this one: the same cases and networks, looked at with another attention."""
        return self.root / "other_attention" / mode

    def attention_detector(self, round_index: int) -> Path:
        """What this round's revisions taught about errors; later rounds look with it."""
        return self.round(round_index) / "attention_detector.json"

    def latest_detector(self, *, before: int) -> Path | None:
        """The newest detector learned in a round before one."""
        paths = (self.attention_detector(r) for r in range(before - 1, -1, -1))
        return next((path for path in paths if path.exists()), None)

    def candidates(self, round_index: int, case_id: str) -> Path:
        return candidates_in(self.prediction(round_index, case_id))

    def label_quality_csv(self, round_index: int) -> Path:
        return self.round(round_index) / "label_quality.csv"

    def label_quality_parquet(self, round_index: int) -> Path:
        return self.round(round_index) / "label_quality.parquet"

    def label_score(self, round_index: int, case_id: str) -> Path:
        """What the networks of a round think of one case's label."""
        return self.round(round_index) / "label_quality" / f"{case_id}.json"

    def release(self, round_index: int, layout: str) -> Path:
        """Where an export goes unless it is told otherwise."""
        return self.round(round_index) / "release" / layout

    def promotions(self, round_index: int) -> Path:
        """What the gate said of the networks fine-tuned for this round."""
        return self.round(round_index) / "promotions.json"

    def point(self, round_index: int) -> Path:
        """What a simulated arm has reached before this round's annotation."""
        return self.round(round_index) / "point.json"

    def record(self, round_index: int) -> Path:
        return self.round(round_index) / "record.json"

    def predictions(self, round_index: int) -> Path:
        return self.round(round_index) / "predictions"

    def annotations(self, round_index: int) -> Path:
        return self.round(round_index) / "annotations"

    def tables(self, round_index: int) -> Path:
        return self.round(round_index) / "tables"

    # --- one case in one round ---
    def prediction(self, round_index: int, case_id: str) -> Path:
        return self.predictions(round_index) / case_id

    def pseudo_label(self, round_index: int, case_id: str) -> Path:
        return pseudo_label_in(self.prediction(round_index, case_id))

    def heat(self, round_index: int, case_id: str) -> Path:
        return heat_in(self.prediction(round_index, case_id))

    def attention(self, round_index: int, case_id: str, organ: str) -> Path:
        return attention_in(self.prediction(round_index, case_id), organ)

    def architecture_label(self, round_index: int, case_id: str, architecture: str) -> Path:
        return architecture_label_in(self.prediction(round_index, case_id), architecture)

    def components(self, round_index: int, case_id: str) -> Path:
        return components_in(self.prediction(round_index, case_id))

    def scores(self, round_index: int, case_id: str) -> Path:
        return scores_in(self.prediction(round_index, case_id))

    def annotation(self, round_index: int, case_id: str) -> Path:
        return self.annotations(round_index) / case_id / "label.nii.gz"

    def provenance(self, round_index: int, case_id: str) -> Path:
        return self.annotations(round_index) / case_id / MERGED

    # --- small readers ---
    def cases(self) -> list[Case]:
        """The manifest. Raises WorkspaceError where ingest has not run."""
        return list(self._cases_by_id().values())

    def case(self, case_id: str) -> Case:
        """One case of the manifest. Raises WorkspaceError for an unknown id."""
        found = self._cases_by_id().get(case_id)
        if found is None:
            raise WorkspaceError(f"case {case_id!r} is not in {self.manifest}")
        return found

    def _cases_by_id(self) -> dict[str, Case]:
        try:
            written = self.manifest.stat()
        except FileNotFoundError:
            raise WorkspaceError(f"{self.manifest} is missing; run `python -m jobs.ingest CONFIG` first") from None
        return _parsed_manifest(self.manifest, (written.st_mtime_ns, written.st_size, getattr(written, "st_ino", 0)))

    def case_scores(self, round_index: int, case_id: str) -> CaseScores:
        path = self.scores(round_index, case_id)
        if not path.exists():
            raise WorkspaceError(f"{path} is missing; run `python -m jobs.predict CONFIG --round {round_index}` first")
        return CaseScores.model_validate_json(path.read_bytes())

    def case_components(self, round_index: int, case_id: str) -> list[AttentionComponent]:
        return read_lines(self.components(round_index, case_id), AttentionComponent)

    def result_stamps(self, round_index: int) -> dict[str, int]:
        """Of the cases whose prediction is finished: when scores.json was written, in nanoseconds of the file system's clock."""
        return stamps(self.predictions(round_index), RESULT)

    def predicted(self, round_index: int) -> set[str]:
        """Ids of the cases whose prediction is finished."""
        return set(self.result_stamps(round_index))

    def merged(self, round_index: int) -> set[str]:
        """Ids of the cases whose annotation is finished."""
        return set(stamps(self.annotations(round_index), MERGED))

    def quarantined(self) -> list[Quarantined]:
        return read_lines(self.quarantine, Quarantined)

    def set_aside(self, step: str) -> dict[str, Quarantined]:
        """By case id, what one step has set aside."""
        return {entry.case_id: entry for entry in self.quarantined() if entry.step == step}

    def take_from_quarantine(self, step: str, case_ids: Collection[str]) -> int:
        """Forget that these cases were set aside by a step. Returns how many were."""
        listed = self.quarantined()
        kept = [entry for entry in listed if entry.step != step or entry.case_id not in case_ids]
        if len(kept) < len(listed):
            write_lines(self.quarantine, kept)
        return len(listed) - len(kept)

    def add_to_quarantine(self, *entries: Quarantined) -> None:
        """Record cases set aside; a case already listed for the same step keeps its newest reason."""
        new = {(e.step, e.case_id): e for e in (*self.quarantined(), *entries)}
        write_lines(self.quarantine, new.values())

    # --- state of a round ---
    def rounds(self) -> list[int]:
        """Rounds that something was written of."""
        folder = self.root / "rounds"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []

    def newest_round(self) -> int:
        """The last one with a step or a priority list of its own that was not given up: a round ends by predicting the next one's
        holdout, and jobs that are run one by one record no steps."""
        states = {r: self.round_state(r) for r in self.rounds()}
        own = (r for r, s in states.items() if s.started or s.finished or self.priority_csv(r).exists())
        return max((r for r in own if not states[r].abandoned), default=0)

    def round_state(self, round_index: int) -> RoundState:
        path = self.state(round_index)
        return _parsed_state(path.read_text()) if path.exists() else RoundState()

    def write_round_state(self, round_index: int, state: RoundState) -> None:
        write_atomically(self.state(round_index), state.model_dump_json(indent=2))

    def finished_steps(self, round_index: int) -> dict[str, str]:
        """Step -> ISO time it finished."""
        return self.round_state(round_index).finished

    def start_step(self, round_index: int, step: str, when: str) -> None:
        state = self.round_state(round_index)
        self.write_round_state(round_index, state.model_copy(update={"started": {**state.started, step: when}}))

    def finish_step(self, round_index: int, step: str, when: str) -> None:
        state = self.round_state(round_index)
        self.write_round_state(round_index, state.model_copy(update={"finished": {**state.finished, step: when}}))


def _parsed_state(text: str) -> RoundState:
    """A state file; the first version held finished steps and nothing else."""
    content = json.loads(text)
    return RoundState.model_validate(content if "finished" in content else {"finished": content})


# A prediction is written in a folder that is not yet in its place, so these names are needed without a workspace.


def pseudo_label_in(prediction: Path) -> Path:
    return prediction / "pseudo_label.nii.gz"


def heat_in(prediction: Path) -> Path:
    return prediction / "heat.nii.gz"


def attention_in(prediction: Path, organ: str) -> Path:
    return prediction / "attention" / f"{organ}.nii.gz"


def architecture_label_in(prediction: Path, architecture: str) -> Path:
    return prediction / "architectures" / f"{architecture}.nii.gz"


def anatomy_in(prediction: Path) -> Path:
    """What anatomical rules did to the label."""
    return prediction / "anatomy.json"


def components_in(prediction: Path) -> Path:
    return prediction / "components.jsonl"


def candidates_in(prediction: Path) -> Path:
    """What calibrated attention chose from."""
    return prediction / "candidates.npz"


def scores_in(prediction: Path) -> Path:
    return prediction / RESULT

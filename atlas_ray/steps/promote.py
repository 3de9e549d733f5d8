"""The promotion gate: fine-tuned networks are measured on the holdout, and only those that forgot nothing go on.

A round's checkpoint is the network the round works with. Where the gate refuses a candidate it is put aside under a name of its own
and the weights it was fine-tuned from take its place, so that whatever comes later finds the champion without knowing of the gate.
"""

import logging

from atlas_ray.cluster.tracking import Run, step_run
from atlas_ray.config import Campaign
from atlas_ray.exceptions import AtlasError
from atlas_ray.schema import Schema
from atlas_ray.segmentation.gate import Judgment
from atlas_ray.steps.evaluate import Evaluation, evaluate_step
from atlas_ray.steps.predict import predict_step
from atlas_ray.storage import write_atomically
from atlas_ray.workspace import file_sha256

log = logging.getLogger(__name__)


class Promotion(Schema):
    """What became of one architecture's fine-tuned weights.

    Args:
        candidate: sha256 of the fine-tuned weights.
        champion: sha256 of the weights the round works with: the candidate's, or those it was fine-tuned from.
        champion_round: the round whose training made them.
    """

    architecture: str
    judgment: Judgment
    candidate: str
    champion: str
    champion_round: int


class Promotions(Schema):
    """A round's gate; written before anything is put aside."""

    round: int
    architectures: tuple[Promotion, ...]

    @property
    def refused(self) -> tuple[Promotion, ...]:
        return tuple(one for one in self.architectures if not one.judgment.promoted)


def promote_step(campaign: Campaign, round_index: int) -> Promotions:
    """Measure the networks that were fine-tuned for a round (1 or later) and put the refused ones aside.

    Without a holdout, or with `gate: null`, every candidate is promoted.

    Raises:
        AtlasError: a checkpoint of this round or of the one before is missing.
    """
    workspace = campaign.open_workspace()
    promotions = _judged_before(campaign, round_index)
    if promotions is None:
        promotions = _judge(campaign, round_index)
        write_atomically(workspace.promotions(round_index), promotions.model_dump_json(indent=2))
    for one in promotions.refused:
        _put_aside(campaign, round_index, one)
    if promotions.refused:
        _measure(campaign, round_index)  # what the round works with, for the round's record
    with step_run(campaign, round_index, "promote") as run:
        for one in promotions.architectures:
            _track(campaign, round_index, run, one)
    return promotions


def _judged_before(campaign: Campaign, round_index: int) -> Promotions | None:
    """What the gate said of these very weights; None where it has not seen them, as after a training that was done anew."""
    workspace = campaign.open_workspace()
    path = workspace.promotions(round_index)
    if not path.exists():
        return None
    promotions = Promotions.model_validate_json(path.read_bytes())
    known = {one.architecture: (one.candidate, one.champion) for one in promotions.architectures}
    there = {name: workspace.checkpoint(round_index, name) for name in campaign.architecture_names}
    return promotions if all(p.exists() and file_sha256(p) in known.get(n, ()) for n, p in there.items()) else None


def _judge(campaign: Campaign, round_index: int) -> Promotions:
    workspace = campaign.open_workspace()
    for r in (round_index - 1, round_index):
        for name in campaign.architecture_names:
            if not workspace.checkpoint(r, name).exists():
                raise AtlasError(f"checkpoint {workspace.checkpoint(r, name)} is missing; train round {r} first")
    judgments = dict.fromkeys(campaign.architecture_names, Judgment(promoted=True, reason="promoted: the gate is off"))
    if campaign.gate is not None and _holdout(campaign):
        before = _measured_before(campaign, round_index - 1)
        after = _measure(campaign, round_index)
        judgments = {
            name: campaign.gate.judge(before.architectures[name], after.architectures[name]) for name in campaign.architecture_names
        }
    elif campaign.gate is not None:
        judgments = dict.fromkeys(judgments, Judgment(promoted=True, reason="promoted: there is no holdout to measure on"))
    earlier = _champion_rounds(campaign, round_index - 1)
    made = []
    for name, judgment in judgments.items():
        candidate = file_sha256(workspace.checkpoint(round_index, name))
        parent = file_sha256(workspace.checkpoint(round_index - 1, name))
        champion, champion_round = (candidate, round_index) if judgment.promoted else (parent, earlier[name])
        made.append(
            Promotion(architecture=name, judgment=judgment, candidate=candidate, champion=champion, champion_round=champion_round)
        )
        (log.info if judgment.promoted else log.warning)("%s of round %d: %s", name, round_index, judgment.reason)
    return Promotions(round=round_index, architectures=tuple(made))


def _champion_rounds(campaign: Campaign, round_index: int) -> dict[str, int]:
    """Architecture -> the round whose training made the weights that a round works with."""
    path = campaign.open_workspace().promotions(round_index)
    rounds = dict.fromkeys(campaign.architecture_names, round_index)
    if path.exists():
        promotions = Promotions.model_validate_json(path.read_bytes())
        rounds |= {one.architecture: one.champion_round for one in promotions.architectures}
    return rounds


def _holdout(campaign: Campaign) -> set[str]:
    workspace = campaign.open_workspace()
    return {c.case_id for c in workspace.cases() if c.split == "holdout" and workspace.truth(c.case_id).exists()}


def _measured_before(campaign: Campaign, round_index: int) -> Evaluation:
    """The evaluation of an earlier round; measured again where the holdout has other cases by now, or an architecture is new."""
    path = campaign.open_workspace().evaluation(round_index)
    if path.exists():
        evaluation = Evaluation.model_validate_json(path.read_bytes())
        if set(evaluation.per_case) == _holdout(campaign) and set(campaign.architecture_names) <= set(evaluation.architectures):
            return evaluation
    return _measure(campaign, round_index)


def _measure(campaign: Campaign, round_index: int) -> Evaluation:
    predict_step(campaign, round_index, splits=("holdout",))
    return evaluate_step(campaign, round_index)


def _put_aside(campaign: Campaign, round_index: int, one: Promotion) -> None:
    """Keep the candidate under its own name and let the champion take its place; a second time changes nothing."""
    workspace = campaign.open_workspace()
    checkpoint = workspace.checkpoint(round_index, one.architecture)
    if file_sha256(checkpoint) != one.candidate:
        return
    write_atomically(workspace.candidate(round_index, one.architecture), checkpoint.read_bytes())
    write_atomically(checkpoint, workspace.checkpoint(round_index - 1, one.architecture).read_bytes())


def _track(campaign: Campaign, round_index: int, run: Run, one: Promotion) -> None:
    workspace, name = campaign.open_workspace(), one.architecture
    model, reason = campaign.registered_model(name), one.judgment.reason
    run.metrics({f"gate/worst_drop_{name}": one.judgment.worst_drop}, step=round_index)
    run.tags({f"gate.{name}": reason})
    if one.judgment.promoted:
        path = str(workspace.checkpoint(round_index, name))
        run.register(model, one.candidate, alias="champion", tags={"path": path, "round": str(round_index), "gate": reason})
        return
    path = str(workspace.candidate(round_index, name))
    run.register(model, one.candidate, alias="candidate", tags={"path": path, "round": str(round_index), "gate": reason})
    path = str(workspace.checkpoint(one.champion_round, name))
    run.register(model, one.champion, alias="champion", tags={"path": path, "round": str(one.champion_round)})

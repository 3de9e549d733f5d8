"""Where a campaign stands: cases by state, failures with their reasons, steps of every round, who is at work, what to do next.

python -m jobs.status CONFIG [--round N] [--failed] [--cases STATE] [--set key=value]
"""

from typing import Annotated

import typer

from atlas_ray.job import ConfigArgument, SetOption, open_campaign, out, print_table, run
from atlas_ray.rounds import STEPS
from atlas_ray.status import STATES, Status, next_command, read_status

ShownRound = Annotated[int | None, typer.Option("--round", min=0, help="Round number; without it, the newest that was started.")]
FailedOption = Annotated[bool, typer.Option("--failed", help="List every failure with its reason, not the first five.")]
CasesOption = Annotated[
    str | None, typer.Option("--cases", metavar="STATE", help=f"List the cases in this state: {', '.join(STATES)}.")
]


def main(
    config: ConfigArgument,
    round_: ShownRound = None,
    failed: FailedOption = False,
    cases: CasesOption = None,
    set_: SetOption = None,
) -> None:
    """Say where every case stands. Reads only, takes no lock, and may be run at any time."""
    if cases is not None and cases not in STATES:
        raise typer.BadParameter(f"{cases!r} is no state; allowed are {', '.join(STATES)}", param_hint="--cases")
    campaign = open_campaign(config, set_, dry_run=True)
    status = read_status(campaign, round_)
    print_table(f"{len(status.states)} cases in round {status.round}", ("state", "cases"), list(status.counts.items()))
    if cases is not None:
        listed = [(case_id,) for case_id, state in status.states.items() if state == cases]
        print_table(f"{len(listed)} cases are {cases}", ("case",), listed)
    if status.failures:
        shown = status.failures if failed else status.failures[:5]
        more = "" if len(shown) == len(status.failures) else f", the first {len(shown)}; --failed lists all"
        print_table(
            f"{len(status.failures)} failures{more}", ("case", "step", "reason"), [(q.case_id, q.step, q.reason) for q in shown]
        )
    steps = [(str(r), *(_when(status, r, step) for step in STEPS), _gb(status.prediction_bytes[r])) for r in status.rounds]
    print_table("rounds", ("round", *STEPS, "predictions"), steps)
    if status.holder is not None:
        out.print(f"at work: {status.holder[0]}, last heard of {status.holder[1]:.0f} s ago", markup=False)
    if status.backlog:
        out.print(f"tracking: {status.backlog} entries wait in tracking_backlog.jsonl until the server is back", markup=False)
    if status.free_bytes is not None:
        out.print(f"free on the workspace's disk: {_gb(status.free_bytes)}", markup=False)
    out.print(f"next: {next_command(campaign, config, status)}", markup=False, soft_wrap=True)


def _when(status: Status, round_index: int, step: str) -> str:
    state = status.rounds[round_index]
    if step in state.finished:
        return state.finished[step][5:16].replace("T", " ")
    if state.abandoned:
        return "abandoned"
    return f"since {state.started[step][5:16].replace('T', ' ')}" if step in state.started else "-"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


if __name__ == "__main__":
    run(main)

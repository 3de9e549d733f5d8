"""Send a job to a Ray cluster and follow its log.

python -m jobs.submit VERB CONFIG [--round N] [--set key=value] [--address URL] [--no-wait] [--dry-run] [-- further arguments]
"""

from typing import Annotated

import typer

from atlas_ray.cluster.submission import CHECKOUT, EXCLUDES, VERBS, JobServer, plan_submission
from atlas_ray.job import ConfigArgument, DryRunOption, SetOption, open_campaign, out, print_table, run

VerbArgument = Annotated[
    str, typer.Argument(metavar="VERB", help=f"The job: {', '.join(VERBS)}; with its word where it has words: 'evaluate dice'.")
]
ExtraArgument = Annotated[list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="Passed on to the job as they are.")]
SentRoundOption = Annotated[int | None, typer.Option("--round", min=0, help="Round number, for jobs that have one.")]
AddressOption = Annotated[str, typer.Option("--address", help="The cluster's dashboard.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log, and fail if the job does.")]


def main(
    verb: VerbArgument,
    config: ConfigArgument,
    extra: ExtraArgument = None,
    round_: SentRoundOption = None,
    set_: SetOption = None,
    address: AddressOption = "http://127.0.0.1:8265",
    wait: WaitOption = True,
    dry_run: DryRunOption = False,
) -> None:
    """Send this checkout and a job to a cluster. The workspace and the images must lie where the cluster sees them, too."""
    submission = plan_submission(open_campaign(config, set_, dry_run=True), verb, round_index=round_, extra=extra or ())
    if dry_run:
        rows = [("entrypoint", submission.entrypoint), ("id", f"{submission.stem}-<n>"), ("working_dir", str(CHECKOUT))]
        print_table(f"would submit to {address}", ("", ""), [*rows, ("without", ", ".join(EXCLUDES))])
        return
    server = JobServer(address)
    submission_id = server.submit(submission)
    out.print(f"submitted {submission_id}; stop it with `ray job stop {submission_id} --address {address}`", markup=False)
    if wait:
        server.follow(submission_id, lambda text: out.out(text, end=""))


if __name__ == "__main__":
    run(main)

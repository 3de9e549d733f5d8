"""Read a workspace again and list what is missing, stale or altered, with the command that mends it.

python -m jobs.verify CONFIG [--images] [--set key=value]
"""

from typing import Annotated

import typer

from atlas_ray.job import ConfigArgument, SetOption, open_campaign, out, progress, run
from atlas_ray.verify import folders_to_check, verify

ImagesOption = Annotated[bool, typer.Option("--images", help="Read every image again, too: as long as copying the data takes.")]


def main(config: ConfigArgument, images: ImagesOption = False, set_: SetOption = None) -> None:
    """Check every file against its checksum, every prediction against its inputs. Changes nothing; exit code 1 for any finding."""
    campaign = open_campaign(config, set_, dry_run=True)
    with progress("verify", folders_to_check(campaign)) as advance:
        findings = verify(campaign, config, images=images, progress=advance)
    if not findings:
        out.print("nothing is missing, stale or altered")
        return
    for found in findings:  # a line each: a table would cut the paths
        out.print(f"{found.problem}: {found.path}: {found.detail}; mend: {found.mend}", markup=False, soft_wrap=True)
    out.print(f"{len(findings)} findings")
    raise typer.Exit(1)


if __name__ == "__main__":
    run(main)

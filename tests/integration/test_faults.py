"""The fault campaign in small: driver and actor are killed, some inputs are damaged. The large one is benchmarks/faults.py."""

from pathlib import Path

import pytest
from chaos import Setting, campaign_with_faults, hosts


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_whose_actor_and_driver_are_killed_loses_nothing(tmp_path: Path) -> None:
    with hosts(0) as cluster:
        setting = Setting(cluster, cases=20, edge=16, corrupt=0.15, hesitation_s=0)
        for attempt in range(3):  # on a busy machine the stream may end before its turn to be killed comes
            outcome = campaign_with_faults(tmp_path / str(attempt), setting, ["actor", "driver"], seed=4)
            assert outcome.violations == []
            assert outcome.starts == 1 + outcome.faults.count("driver")
            if len(outcome.faults) == 2:
                break
    assert sorted(outcome.faults) == ["actor", "driver"]

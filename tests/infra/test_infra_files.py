"""Everything else in infra/: the image, scripts, units, `ray up` files, the dashboard. No engine is needed."""

import json
import re
import shutil
import stat
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra"
METRICS = {
    "atlas_ray_cases_total",
    "atlas_ray_cases_failed_total",
    "atlas_ray_stage_seconds",
    "atlas_ray_cases_left",
    "atlas_ray_gpu_busy_ratio",
}
SCRIPTS = [*sorted((REPOSITORY / ".ci").iterdir()), *sorted(INFRA.rglob("*.sh")), *sorted(INFRA.rglob("*.sbatch"))]
UNITS = sorted((INFRA / "systemd").glob("*.service"))


# --- the image -------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, comments dropped and continued lines joined."""
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined if line.strip())]


def test_the_base_is_pinned_and_the_user_is_not_root() -> None:
    steps = instructions()
    (base,) = [rest for word, rest in steps if word == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-[\w-]+", base), "a full version, never `latest`"
    assert {rest.split()[0] for word, rest in steps if word == "FROM"} == {"${BASE}"}
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["atlas"]
    assert [word for word, _ in steps].index("USER") > max(i for i, (word, _) in enumerate(steps) if word == "RUN")


def test_what_is_copied_exists_and_goes_to_the_builder() -> None:
    allowed = [line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    for word, rest in instructions():
        if word == "COPY" and "--from=" not in rest:
            *sources, _ = rest.split()
            for source in sources:
                assert (REPOSITORY / source).exists(), source
                assert any(fnmatch(source, pattern) for pattern in allowed), f"{source} is ignored"


def test_packages_come_by_the_constraints_and_lists_are_removed() -> None:
    for word, rest in instructions():
        if word == "RUN":
            for install in re.findall(r"pip install [^&;]*", rest):
                assert "--constraint constraints.txt" in install
            if "apt-get install" in rest:
                assert rest.count("--no-install-recommends") == rest.count("apt-get install")
                assert "rm -rf /var/lib/apt/lists/*" in rest
            assert "sudo" not in rest
            assert "curl" not in rest
    assert not any(word == "ADD" for word, _ in instructions())
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)=\S", (INFRA / "Dockerfile").read_text())


def test_torch_is_the_pinned_one() -> None:
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line)
    assert re.findall(r"torch==([\d.]+)", (INFRA / "Dockerfile").read_text()) == [pins["torch"]] * 2
    serve = (INFRA / "requirements-serve.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in serve if not line.startswith("#"))


# --- scripts and units -----------------------------------------------------------------------------------------------


def test_shellcheck_finds_nothing() -> None:
    binary = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert binary is not None, "the dev extra brings shellcheck"
    result = subprocess.run([binary, *SCRIPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_stop_at_the_first_error(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    if script.suffix != ".sbatch":
        assert script.stat().st_mode & stat.S_IXUSR


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "ray", "mlflow"):
        (binaries / name).symlink_to("/bin/true")
    copies = []
    for unit in UNITS:
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(unit.read_text().replace("/opt/atlas_ray", str(tmp_path)))
    result = subprocess.run([verify, "verify", "--man=no", *copies], capture_output=True, text=True)
    named = [line for line in result.stderr.splitlines() if "atlas-" in line]  # it speaks of the machine's own units, too
    assert not named, "\n".join(named)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_run_as_a_user_and_hold_no_secret(unit: Path) -> None:
    text = unit.read_text()
    assert "User=atlas" in text
    assert "NoNewPrivileges=true" in text
    assert not re.search(r"^Environment=.*(PASSWORD|SECRET|TOKEN)=", text, re.MULTILINE)
    assert "--host 0.0.0.0" not in text
    assert "--host=0.0.0.0" not in text


# --- ray up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aws", "hosts"])
def test_ray_up_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "ray_up" / f"{name}.yaml").read_text())
    validate_config(prepare_config(config))
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[commands] if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_ray_up_refuses_what_it_does_not_know() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "ray_up" / "aws.yaml").read_text())
    config["available_node_types"]["gpu"]["max_worker"] = 1
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((INFRA / "grafana" / "atlas_ray.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {
        re.sub(r"_(bucket|sum|count)$", "", name) for text in expressions for name in re.findall(r"\bray_(atlas_ray_\w+)", text)
    }
    assert asked == METRICS
    assert all(text.count("(") == text.count(")") for text in expressions)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    sources = yaml.safe_load((INFRA / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"] for source in sources}


def test_the_readme_names_every_folder() -> None:
    text = (INFRA / "README.md").read_text() + (INFRA / "compose.yaml").read_text()
    folders = [path.name for path in INFRA.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(folders) >= 7
    assert not [name for name in folders if f"{name}/" not in text]

"""compose.yaml, .env.example and what the services mount: complete, pinned, healthy in order, without a secret in them."""

import configparser
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KEYS = {"image", "command", "environment", "volumes", "depends_on", "healthcheck", "ports", "profiles", "restart", "security_opt",
        "logging", "shm_size", "user", "network_mode"}  # fmt: skip
VARIABLE = re.compile(r"\$\{(\w+)(:\?[^}]*)?\}")


def settings() -> dict[str, str]:
    lines = (INFRA / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_pinned_and_restarts(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= KEYS
    image = service["image"]
    assert image.startswith("${ATLAS_IMAGE:?") or re.fullmatch(r"[a-z/]+:v?\d+\.\d+[\w.-]*", image), f"{image} is not pinned"
    if name != "own-volumes":
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert "no-new-privileges:true" in service["security_opt"]


def test_what_is_waited_for_exists_and_can_be_waited_for() -> None:
    conditions = {"service_healthy": "healthcheck", "service_completed_successfully": "command"}
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            assert conditions[wait["condition"]] in SERVICES[other], f"{name} waits for {other}"
            assert "profiles" not in SERVICES[other] or "profiles" in service


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {key} is written out"
    assert not re.search(r"://[^\s/@]+:[^\s/@]+@", (INFRA / "compose.yaml").read_text()), "an address with a password"


def test_every_variable_is_in_the_example_and_no_secret_has_a_value() -> None:
    used = {found[0] for found in VARIABLE.findall((INFRA / "compose.yaml").read_text())}
    example = settings()
    assert used == set(example)
    assert all(not value for name, value in example.items() if re.search("PASSWORD|SECRET|TOKEN", name))
    ignored = subprocess.run(["git", "check-ignore", "infra/.env"], cwd=REPOSITORY, capture_output=True)
    assert ignored.returncode == 0, "git must ignore infra/.env"


def test_what_is_mounted_exists() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:\?[^}]*\}", "/", volume).split(":")[0]
            if source.startswith("./"):
                assert (INFRA / source).exists(), f"{name} mounts {source}"
            elif not source.startswith("/"):
                assert source in COMPOSE["volumes"]


def test_only_the_proxy_is_reachable_from_other_machines() -> None:
    for name, service in SERVICES.items():
        if name != "proxy":
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_mlflow_asks_for_a_login_and_checks_the_host() -> None:
    options = [argument for argument in SERVICES["mlflow"]["command"] if argument.startswith("--")]
    arguments = dict(option.removeprefix("--").split("=", 1) for option in options)
    assert arguments["app-name"] == "basic-auth"
    assert arguments["allowed-hosts"].startswith("mlflow:5000,localhost:5000,")
    auth = configparser.ConfigParser()
    auth.read(INFRA / "mlflow_auth.ini")
    assert "admin_password" not in auth["mlflow"]
    assert auth["mlflow"]["default_permission"] in ("READ", "NO_PERMISSIONS")


def test_ray_asks_for_a_token() -> None:
    assert SERVICES["ray-head"]["environment"]["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" in SERVICES["ray-head"]["environment"]


def test_caddy_forwards_to_services_only_with_tls() -> None:
    text = (INFRA / "caddy" / "Caddyfile").read_text()
    assert text.count("{") == text.count("}")
    for host, port in re.findall(r"reverse_proxy (\S+):(\d+)", text):
        assert host in SERVICES
        assert port in " ".join(map(str, SERVICES[host]["command"]))
    sites = re.findall(r"^(\S+) \{$", text, re.MULTILINE)
    assert [site for site in sites if not site.startswith("(")] == ["{$ATLAS_HOST}", "{$MLFLOW_HOST}"]
    assert "http://" not in text
    assert "ray-head" not in text, "the job server runs any code: it stays behind a tunnel"

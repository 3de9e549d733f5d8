"""The Kubernetes manifests, read as KubeRay would: known fields only, references that resolve, nothing privileged.

The field lists are KubeRay's (RayCluster, RayJob, RayService, v1); pods are checked for what this project relies on.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from atlas_ray import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "infra" / "kubernetes"
RAY_CLUSTER = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
               "headServiceAnnotations", "suspend", "managedBy", "gcsFaultToleranceOptions"}  # fmt: skip
AUTOSCALER = {"version", "idleTimeoutSeconds", "upscalingMode", "resources", "image", "imagePullPolicy", "env", "envFrom",
              "securityContext", "volumeMounts"}  # fmt: skip
HEAD = {"rayStartParams", "template", "serviceType", "enableIngress", "headService", "resources", "labels"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "rayStartParams", "template",
           "scaleStrategy", "suspend", "resources", "labels"}  # fmt: skip
RAY_JOB = {"entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes", "rayClusterSpec",
           "ttlSecondsAfterFinished", "runtimeEnvYAML", "submitterPodTemplate", "submitterConfig", "metadata", "jobId", "suspend",
           "clusterSelector", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "deletionStrategy"}  # fmt: skip
RAY_SERVICE = {"serveConfigV2", "rayClusterConfig", "upgradeStrategy", "serveService", "excludeHeadPodFromServeSvc"}


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, found) for path in sorted(FOLDER.glob("*.yaml")) for found in yaml.safe_load_all(path.read_text())]


DOCUMENTS = documents()
RAY = [(name, found) for name, found in DOCUMENTS if found["apiVersion"] == "ray.io/v1"]


def cluster_of(found: dict[str, Any]) -> dict[str, Any]:
    spec = found["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods() -> list[tuple[str, dict[str, Any]]]:
    deployments = [(name, found["spec"]["template"]["spec"]) for name, found in DOCUMENTS if found["kind"] == "Deployment"]
    deployments += [(name, found["spec"]) for name, found in DOCUMENTS if found["kind"] == "Pod"]
    groups = [(name, [cluster_of(found)["headGroupSpec"], *cluster_of(found)["workerGroupSpecs"]]) for name, found in RAY]
    return deployments + [(name, group["template"]["spec"]) for name, members in groups for group in members]


PODS = pods()


def test_there_is_one_of_each_kind() -> None:
    kinds = [found["kind"] for _, found in DOCUMENTS]
    assert {"RayCluster", "RayJob", "RayService", "Deployment", "NetworkPolicy"} <= set(kinds)
    named = [(found["kind"], found["metadata"]["name"]) for _, found in DOCUMENTS]
    assert len(set(named)) == len(named)
    assert {found["metadata"].get("namespace", "atlas") for _, found in DOCUMENTS} == {"atlas"}


@pytest.mark.parametrize(("name", "found"), RAY, ids=[name for name, _ in RAY])
def test_kuberay_knows_every_field(name: str, found: dict[str, Any]) -> None:
    own = {"RayJob": RAY_JOB, "RayService": RAY_SERVICE, "RayCluster": RAY_CLUSTER}[found["kind"]]
    assert set(found["spec"]) <= own
    cluster = cluster_of(found)
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert set(cluster["headGroupSpec"]) <= HEAD
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings only"


@pytest.mark.parametrize(("name", "found"), RAY, ids=[name for name, _ in RAY])
def test_ray_asks_for_a_token_and_is_the_version_we_install(name: str, found: dict[str, Any]) -> None:
    assert cluster_of(found)["authOptions"] == {"mode": "token"}
    assert cluster_of(found)["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}" in (REPOSITORY / "constraints.txt").read_text().splitlines()


def test_cpu_and_gpu_groups_grow_apart_from_nothing() -> None:
    (cluster,) = [cluster_of(found) for _, found in RAY if found["kind"] == "RayCluster"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in groups.values())
    limits = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    assert "nvidia.com/gpu" not in limits["cpu"]
    assert limits["gpu"]["nvidia.com/gpu"] == "1"


def test_the_job_brings_the_same_cluster_as_the_one_that_stays() -> None:
    clusters = {found["kind"]: cluster_of(found) for _, found in RAY}
    assert clusters["RayJob"] == clusters["RayCluster"]


def test_the_jobs_command_exists() -> None:
    (job,) = [found for _, found in RAY if found["kind"] == "RayJob"]
    module = re.match(r"python -m jobs\.(\w+) /data/campaign\.yaml --round \d+$", job["spec"]["entrypoint"])
    assert module is not None
    assert (REPOSITORY / "jobs" / f"{module[1]}.py").is_file()
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_the_service_names_an_application_of_this_repository() -> None:
    (service,) = [found for _, found in RAY if found["kind"] == "RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, function = application["import_path"].split(":")
    source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {function}(" in source
    assert f'name="{application["deployments"][0]["name"]}"' in source


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[f"{name}-{index}" for index, (name, _) in enumerate(PODS)])
def test_pods_are_unprivileged_pinned_and_complete(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert re.fullmatch(rf"atlas-ray:{re.escape(__version__)}-(cpu|cuda)", container["image"])
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "memory" in container["resources"]["requests"]
        assert "memory" in container["resources"]["limits"]
        for entry in container.get("env", []):
            secret = re.search("PASSWORD|SECRET|TOKEN", entry["name"])
            assert not secret or "secretKeyRef" in entry.get("valueFrom", {}), f"{entry['name']} is written into {name}"
    sizes = [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm"]
    assert all(size.endswith("Gi") for size in sizes)


def test_claims_services_and_ports_resolve() -> None:
    by_kind = lambda kind: {found["metadata"]["name"]: found for _, found in DOCUMENTS if found["kind"] == kind}  # noqa: E731
    claims, services, deployments = by_kind("PersistentVolumeClaim"), by_kind("Service"), by_kind("Deployment")
    for _, pod in PODS:
        used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        assert used <= set(claims)
    labels = [deployment["spec"]["template"]["metadata"]["labels"] for deployment in deployments.values()]
    assert all(service["spec"]["selector"] in labels for service in services.values())
    for ingress in by_kind("Ingress").values():
        hosts = {rule["host"] for rule in ingress["spec"]["rules"]}
        assert hosts == {host for tls in ingress["spec"]["tls"] for host in tls["hosts"]}, "every name has TLS"
        for rule in ingress["spec"]["rules"]:
            assert {path["backend"]["service"]["name"] for path in rule["http"]["paths"]} <= set(services)


def test_mlflow_asks_for_a_login_and_checks_the_host() -> None:
    (mlflow,) = [pod["containers"][0] for name, pod in PODS if name == "mlflow.yaml"]
    arguments = dict(text.removeprefix("--").split("=", 1) for text in mlflow["args"])
    assert arguments["app-name"] == "basic-auth"
    assert "mlflow:5000" in arguments["allowed-hosts"].split(",")
    assert "*" not in arguments["allowed-hosts"]

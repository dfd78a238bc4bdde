"""The infra files are what their pages say: schemas and semantics hold, and every command in them is one that exists."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import typer
import yaml

from tests.datasets import ROOT
from tests.documents import blocks_of, calls_in, lines_of, parse
from tests.ports import free_ports
from tokenshards import cli

INFRA = ROOT / "infra"
PAGES = [INFRA / "README.md", INFRA / "local_s3" / "README.md"]
CLUSTERS = ["cluster.yaml", "cluster-pip.yaml"]
REGION, ACCOUNT = "eu-central-1", "123456789012"
FILLED_BY = {
    "REGION": REGION,
    "ACCOUNT": ACCOUNT,
    "BUCKET": "images",
    "AMI": "ami-1234567890abcdef0",
    "SECURITY_GROUP": "sg-1234567890abcdef0",
    "REGISTRY": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com",
}
ASSIGNED_SECRET = re.compile(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key|aws_session_token|ray_auth_token)\s*[=:]\s*['\"]?[\w/+]{8,}")


def yaml_file(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(path.read_text())
    assert isinstance(value, dict)
    return value


def without_image(cluster: Path) -> str:
    """The output of the script of the page."""
    (call,) = [words for page in PAGES for line in lines_of(page) for words in calls_in(line) if "infra/aws/without_image.py" in words]
    return subprocess.run([sys.executable, ROOT / call[1], cluster], capture_output=True, text=True, check=True).stdout


def command_lines() -> list[str]:
    lines = [line for page in PAGES for line in lines_of(page)]
    template = INFRA / "aws" / "cluster.yaml"
    for config in (yaml_file(template), yaml.safe_load(without_image(template))):
        lines += [line for key, value in config.items() if key.endswith("_commands") for line in value]
    return [*lines, yaml_file(INFRA / "kuberay" / "rayjob.yaml")["spec"]["entrypoint"]]


def arguments_of(*program: str) -> list[tuple[str, ...]]:
    """The arguments of every call of `program` in the pages and files, each once."""
    calls = [words for line in command_lines() for words in calls_in(line)]
    return list(dict.fromkeys(tuple(words[len(program) :]) for words in calls if tuple(words[: len(program)]) == program))


OURS = arguments_of("tokenshards") + arguments_of("python", "cli.py")
RAYS = arguments_of("ray")


@pytest.mark.parametrize("words", [words for words in OURS if words != ("--version",)], ids=" ".join)
def test_every_command_of_ours_exists_with_its_options(words: tuple[str, ...]) -> None:
    parse(typer.main.get_command(cli.app), words)


@pytest.mark.parametrize("words", [words for words in RAYS if words != ("--version",)], ids=" ".join)
def test_every_command_of_ray_exists_with_its_options(words: tuple[str, ...]) -> None:
    from ray.scripts.scripts import cli as ray_cli

    parse(ray_cli, words)


def test_the_commands_were_found() -> None:
    assert {words[0] for words in OURS} >= {"plan", "tokenize", "submit", "status", "verify", "train"}
    assert {words[0] for words in RAYS} >= {"start", "stop", "up", "down", "job", "get-auth-token", "dashboard", "exec"}
    with pytest.raises(Exception, match="No such option"):
        parse(typer.main.get_command(cli.app), ["status", "s3://bucket/tokens", "--no-such-option"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_pages_hold_scripts_and_files_that_exist(page: Path) -> None:
    for block in blocks_of(page):
        subprocess.run(["bash", "-n", "-c", block], check=True)
    for name in re.findall(r"\binfra/[\w./-]+\w", page.read_text()):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:local_s3|docker|aws|kuberay)/[\w./-]*)`", page.read_text()):
        assert (INFRA / name).exists(), name
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", page.read_text())) <= headings


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of filled-in files, made by the script that the page tells people to run."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "infra").symlink_to(INFRA)
    (script,) = [block for block in blocks_of(INFRA / "README.md") if "sed -e" in block]
    subprocess.run(["bash", "-euc", script], cwd=folder, env={"PATH": os.environ["PATH"], **FILLED_BY}, check=True)
    made = folder / "my-cluster"
    (made / "cluster-pip.yaml").write_text(without_image(made / "cluster.yaml"))
    return made


def test_filling_in_leaves_nothing_open(filled: Path) -> None:
    files = sorted(filled.iterdir())
    assert {"cluster.yaml", "cluster-pip.yaml", "rayjob.yaml", "eks.yaml", "data-policy.json", "head-policy.json"} <= {
        file.name for file in files
    }
    for file in files:
        assert "YOUR_" not in file.read_text(), file.name
    assert "YOUR_" in (INFRA / "aws" / "cluster.yaml").read_text()


def test_no_secret_and_no_key_is_written_down() -> None:
    files = [path for folder in ("aws", "kuberay", "docker") for path in (INFRA / folder).rglob("*") if path.is_file()]
    assert len(files) > 8
    for file in files:
        assert not ASSIGNED_SECRET.search(file.read_text()), file
    assert ASSIGNED_SECRET.search("AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI")


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_cluster_file_fits_the_schema_of_ray(filled: Path, name: str) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml_file(filled / name))
    validate_config(config)
    with pytest.raises(ValidationError):
        validate_config({**config, "idle_timeout": 5})


def test_a_cluster_without_an_image_is_otherwise_the_same(filled: Path) -> None:
    with_image, without = (yaml_file(filled / name) for name in CLUSTERS)
    assert "docker" in with_image and "docker" not in json.dumps(without)
    assert f"AWS_REGION={REGION} " in without["initialization_commands"][0]
    changed = {key for key in with_image if with_image[key] != without.get(key)}
    installs = {"initialization_commands", "setup_commands", "head_setup_commands", "file_mounts"}
    assert changed == {"docker", "available_node_types", *installs} and without.keys() == with_image.keys() - {"docker"}


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_token_reaches_every_node_of_the_cluster(filled: Path, name: str) -> None:
    config = yaml_file(filled / name)
    (target,) = [remote for remote, local in config["file_mounts"].items() if local == "~/.ray/auth_token"]
    home = "/home/ray" if "docker" in config else f"/home/{config['auth']['ssh_user']}"
    assert target == f"{home}/.ray/auth_token"
    switches = config["docker"]["run_options"] if "docker" in config else config["initialization_commands"]
    assert any("RAY_AUTH_MODE=token" in switch for switch in switches)
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" in head and "ray_bootstrap_config.yaml" in head
    assert 0 < config["idle_timeout_minutes"] <= 15


def wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 60
    while True:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nothing listens on port {port} after 60 s"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def ec2_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a moto server, in a process of its own: what moto holds is global to a process, and other tests use it too."""
    (port,) = free_ports(1)
    with (tmp_path_factory.mktemp("moto") / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
        try:
            wait_for(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def aws(ec2_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty account that boto3, and so Ray's launcher, talks to."""
    urllib.request.urlopen(urllib.request.Request(f"{ec2_server}/moto-api/reset", method="POST")).close()
    for variable, value in {
        "AWS_ENDPOINT_URL": ec2_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(variable, value)


def start_by_launcher(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Let Ray's own launcher code start one node of each type, and return what EC2 says of them, by name of the type."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache
    from ray.autoscaler._private.util import prepare_config

    for cache in (client_cache, resource_cache):
        cache.cache_clear()  # clients of a server that an earlier test has stopped
    complete = bootstrap_aws(prepare_config(config))
    provider = AWSNodeProvider(complete["provider"], complete["cluster_name"])
    ec2 = boto3.client("ec2")
    started = {}
    for node_type, settings in complete["available_node_types"].items():
        tags = {"ray-node-type": "worker", "ray-user-node-type": node_type, "ray-node-name": node_type}
        (instance_id,) = provider.create_node(dict(settings["node_config"]), tags, 1)
        (reservation,) = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        started[node_type] = reservation["Instances"][0]
    return started


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_launcher_of_ray_starts_these_nodes(filled: Path, name: str, aws: None) -> None:
    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    for role in ("head", "node"):
        iam.create_role(RoleName=f"tokenshards-{role}", AssumeRolePolicyDocument=(filled / "ec2-trust.json").read_text())
        iam.create_instance_profile(InstanceProfileName=f"tokenshards-{role}")
        iam.add_role_to_instance_profile(InstanceProfileName=f"tokenshards-{role}", RoleName=f"tokenshards-{role}")
    group = ec2.create_security_group(GroupName="tokenshards-ray", Description="Ray nodes")["GroupId"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    text = (filled / name).read_text().replace(FILLED_BY["SECURITY_GROUP"], group).replace(FILLED_BY["AMI"], image)
    config = yaml.safe_load(text)
    started = start_by_launcher(config)
    assert list(started) == ["head", "cpu", "gpu"] and config["head_node_type"] == "head"
    for node_type, instance in started.items():
        assert instance.get("InstanceLifecycle") == (None if node_type == "head" else "spot")
        market = config["available_node_types"][node_type]["node_config"].get("InstanceMarketOptions")
        assert market == (None if node_type == "head" else {"MarketType": "spot"})
        profile = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert profile == ("tokenshards-head" if node_type == "head" else "tokenshards-node")
        assert [entry["GroupId"] for entry in instance["SecurityGroups"]] == [group]
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        described = ec2.describe_instance_types(InstanceTypes=[instance["InstanceType"]])["InstanceTypes"][0]
        resources = config["available_node_types"][node_type]["resources"]
        assert resources["CPU"] == (0 if node_type == "head" else described["VCpuInfo"]["DefaultVCpus"])
        assert resources.get("GPU", 0) == sum(gpu["Count"] for gpu in described.get("GpuInfo", {}).get("Gpus", []))
    (described_group,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert described_group["IpPermissions"] == []  # the launcher opened no port


def statements(policy: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(policy.read_text())["Statement"]
    return found


def test_the_policies_are_valid_and_give_least_rights(filled: Path, aws: None) -> None:
    iam = boto3.client("iam")
    for policy in sorted(filled.glob("*-policy.json")):
        iam.create_policy(PolicyName=policy.stem, PolicyDocument=policy.read_text())
        for statement in statements(policy):
            actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            assert not any("*" in action for action in actions), statement
            if statement["Resource"] == "*":
                assert all(action.partition(":")[2].startswith(("Describe", "GetAuthorizationToken")) for action in actions), statement
    data = statements(filled / "data-policy.json")
    writable = [place for entry in data if "s3:PutObject" in entry["Action"] for place in entry["Resource"]]
    assert writable == ["arn:aws:s3:::images/tokens/*", "arn:aws:s3:::images/runs/*"]
    name = yaml_file(filled / "cluster.yaml")["cluster_name"]
    for entry in statements(filled / "head-policy.json"):
        if "ec2:TerminateInstances" in entry["Action"]:
            assert entry["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": name}


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_one_version_of_ray_and_of_ours_everywhere() -> None:
    ours = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert ours is not None
    ray = pinned("ray")
    files = [*PAGES, *(INFRA / "aws").glob("*.*"), *(INFRA / "kuberay").glob("*.yaml"), INFRA / "docker" / "Dockerfile"]
    text = "\n".join(file.read_text() for file in files)
    assert set(re.findall(r"tokenshards:(\S+)", text)) == {f"{ours[1]}-ray{ray}-cpu", f"{ours[1]}-ray{ray}-gpu"}
    assert set(re.findall(r"RAY_VERSION=(\S+)|Ray (\d+\.\d+\.\d+)|ray\[[\w,]+\]==(\d\S*)\"", text)) == {
        (ray, "", ""),
        ("", ray, ""),
        ("", "", ray),
    }
    assert yaml_file(INFRA / "kuberay" / "rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == ray


def dockerfile() -> list[tuple[str, str]]:
    text = (INFRA / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_slim_pinned_and_not_root() -> None:
    steps = dockerfile()
    python = next(rest for word, rest in steps if word == "FROM")
    assert python == "python:3.11-slim AS base"
    assert ("ARG", "ACCELERATOR=cpu") in steps and steps[-1] == ("FROM", "${ACCELERATOR}")
    assert {rest for word, rest in steps if word == "FROM"} >= {"base AS cpu", "base AS gpu"}
    installs = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert all(call.count("pip install") == call.count("-c constraints.txt") for call in installs)
    assert any('".[ray,train]"' in call for call in installs)
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["ray"] and any("useradd" in rest and "--uid 1000" in rest for word, rest in steps if word == "RUN")
    assert not [rest for _, rest in steps if "http://" in rest or "https://" in rest]


def test_what_the_image_copies_is_let_through_and_nothing_else() -> None:
    copied = {source for word, rest in dockerfile() if word == "COPY" for source in rest.split()[:-1]}
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignore[0] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    links = {os.readlink(path).removeprefix("../") for path in (ROOT / "tokenshards").iterdir() if path.is_symlink()}
    assert {"tokenshards", "pipeline", "stem_adaptors", "cli.py"} == {"tokenshards", *links} <= copied


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return {"head": cluster["headGroupSpec"]["template"]["spec"]} | {
        group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]
    }


def test_the_job_retries_and_cleans_up(filled: Path) -> None:
    job = yaml_file(filled / "rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
    assert spec["backoffLimit"] > 0 and "--join" in spec["entrypoint"].split()
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True and cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"] and all(
            isinstance(value, str) for value in group["rayStartParams"].values()
        )


def test_the_pods_take_credentials_by_reference_and_run_without_root(filled: Path) -> None:
    found = pods(yaml_file(filled / "rayjob.yaml"))
    assert list(found) == ["head", "cpu", "gpu"]
    for name, pod in found.items():
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] == "tokenshards" and pod["securityContext"]["runAsNonRoot"] is True
        assert container["envFrom"] == [{"secretRef": {"name": "tokenshards-s3", "optional": True}}]
        assert [entry["name"] for entry in container["env"]] == ["AWS_REGION"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["resources"]["limits"].get("nvidia.com/gpu", 0) == (1 if name == "gpu" else 0)
        assert container["image"].endswith("-gpu" if name == "gpu" else "-cpu")


def test_every_pod_finds_a_pool_and_workers_live_on_spot(filled: Path) -> None:
    pools = {pool["name"]: pool for pool in yaml_file(filled / "eks.yaml")["managedNodeGroups"]}
    for name, pod in pods(yaml_file(filled / "rayjob.yaml")).items():
        (pool,) = [pool for pool in pools.values() if pod["nodeSelector"].items() <= pool["labels"].items()]
        tolerated = {entry["key"] for entry in pod.get("tolerations", [])}
        assert {taint["key"] for taint in pool.get("taints", [])} <= tolerated
        assert pool.get("spot", False) is (name != "head")
        assert ("tokenshards/spot" in tolerated) is (name != "head")


@pytest.mark.parametrize("server", ["rclone", "moto_server"])
def test_the_local_s3_of_the_page_is_filled(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = INFRA / "local_s3" / "README.md"
    (port,) = free_ports(1)
    (words,) = [words for line in lines_of(page) for words in calls_in(line.replace("9000", str(port))) if words[0] == server]
    exports = re.findall(r"(AWS_\w+)=(\S+)", next(block for block in blocks_of(page) if "AWS_ENDPOINT_URL" in block))
    for variable, value in exports:
        monkeypatch.setenv(variable, value.replace("9000", str(port)))
    (tmp_path / "s3-trial").mkdir()
    for name in ("b/2.png", "a/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    (call,) = [words for line in lines_of(page) for words in calls_in(line) if "infra/local_s3/fill.py" in words]
    log = (tmp_path / "log").open("wb")
    program = Path(sys.executable).parent / words[0]
    process = subprocess.Popen([str(program), *words[1:]], cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for(process, port)
        for copied in (2, 0):
            fill = [sys.executable, str(ROOT / call[1]), *call[2:]]
            said = subprocess.run(fill, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
            assert f"2 files, {copied} of them copied now" in said
        store = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        assert store.find("trial/images") == ["trial/images/a/1.png", "trial/images/b/2.png"]
        assert store.cat_file("trial/images/a/1.png") == b"a/1.png"
    finally:
        process.kill()
        process.wait()
        log.close()

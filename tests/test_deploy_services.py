"""The unit for systemd, the Containerfile and the Kubernetes example are valid, agree with each other and fit the provider."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.observe.endpoint import PATHS
from tests.provider.observe.test_metrics import debian_program

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "keyvalue-inmemory.service"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
STOP_TIMEOUT_S = ProviderOptions().stop_timeout_ms / 1000


def settings(name: str) -> list[str]:
    """Return the values of a setting in the unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def instructions(name: str) -> list[str]:
    """Return the arguments of an instruction in the Containerfile."""
    return re.findall(rf"^{name} (.*)$", CONTAINERFILE, re.MULTILINE)


def check_configuration(text: str, tmp_path: Path) -> dict[str, Any]:
    """Let the provider's own command check a configuration file. Return its report."""
    file = tmp_path / "keyvalue-inmemory.toml"
    file.write_text(text)
    command: list[str | Path] = [
        Path(sys.executable).with_name("keyvalue-inmemory"),
        "config",
        "check",
        "--json",
        "--config",
        file,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_unit_is_valid_and_exposes_little(tmp_path: Path) -> None:
    analyze = debian_program("systemd-analyze", "systemd")
    (start,) = settings("ExecStart")
    program = tmp_path / "keyvalue-inmemory"
    shutil.copy("/bin/true", program)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(start.split()[0], str(program)))
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    security: list[str | Path] = [
        analyze,
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=20",
        unit,
    ]  # 2.0 of 10
    done = subprocess.run(security, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:]


def test_the_unit_waits_for_an_orderly_stop_and_does_not_repeat_a_mistake() -> None:
    assert float(*settings("TimeoutStopSec")) > STOP_TIMEOUT_S
    assert (settings("Type"), settings("NotifyAccess")) == (["notify"], ["all"])
    assert (settings("Restart"), settings("RestartPreventExitStatus")) == (["on-failure"], ["2"])
    assert settings("ExecReload") == ["/bin/kill -s RTMIN $MAINPID"], "tests/integration/test_signals.py sends it"


def test_the_image_holds_the_executable_and_no_user_with_rights() -> None:
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    needed = {"pyproject.toml", "scripts", "engine", "transport", "replica", "provider"}
    assert needed <= set(sources), "scripts/build reads them"
    (copied,) = (line.split()[-1] for line in instructions("COPY") if "--from=build" in line)
    assert instructions("ENTRYPOINT") == [json.dumps([copied])]
    assert instructions("CMD") == ['["serve"]']
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d{4}:[1-9]\d{4}", user)


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    """Return the resources of the example, by kind."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    resources = {resource["kind"]: resource for resource in found}
    assert len(resources) == len(found) == 4
    return resources


def test_kubernetes_accepts_the_example(resources: dict[str, Any]) -> None:
    for resource in resources.values():
        kubernetes_validate.validate(resource, "1.32", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**resources["Deployment"], "specs": {}}, "1.32", strict=True)


def test_the_example_starts_what_the_image_holds(resources: dict[str, Any], tmp_path: Path) -> None:
    pod = resources["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command, flag, path = container["args"]
    (name, text), *_ = resources["ConfigMap"]["data"].items()
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert (command, flag, path) == ("serve", "--config", f"{mounts['config']}/{name}")
    assert tomllib.loads(text)["store"] == "jetstream", "several instances with store = memory have different keys"
    options = check_configuration(text, tmp_path)["options"]
    (port,) = container["ports"]
    assert options["metrics_address"]["value"] == f"0.0.0.0:{port['containerPort']}"
    assert [f"{pod['securityContext'][name]}" for name in ("runAsUser", "runAsGroup")] == instructions("USER")[0].split(
        ":"
    )
    assert mounts["tmp"] == "/tmp", "the executable unpacks itself there"
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert [probe["path"] for probe in probes.values()] == ["/readyz", "/readyz", "/livez"]
    assert all(f"{probe['path']} " in PATHS and probe["port"] == port["name"] for probe in probes.values())
    before_stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before_stop_s + STOP_TIMEOUT_S


def test_the_selectors_of_the_example_find_the_pods(resources: dict[str, Any]) -> None:
    deployment = resources["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [
        deployment["selector"]["matchLabels"],
        resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        resources["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * 3

"""What is in `deploy/`, as far as it can be checked without the machines that it is for."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from serving import program

DEPLOY = Path(__file__).parents[1] / "deploy"


def known_flags() -> set[str]:
    text = subprocess.run([program(), "--help"], capture_output=True, text=True, timeout=20).stdout
    return set(re.findall(r"--([a-z][a-z-]*)", text))


def test_the_configuration_is_understood(tmp_path: Path) -> None:
    text = (DEPLOY / "config.toml").read_text()
    assert set(tomllib.loads(text)) <= known_flags()
    config = tmp_path / "config.toml"
    config.write_text(re.sub(r"(?m)^(library|generator|port) .*$", "", text) + 'generator = "no-such-model"\n')
    # It is read whole; what is missing is the model.
    finished = subprocess.run(
        [program(), "--config", config, "--port", "0"], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 1
    assert "no-such-model" in finished.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "adventures.service", "modal_app.py"])
def test_only_settings_that_exist(name: str) -> None:
    text = (DEPLOY / name).read_text()
    variables = {found.lower().replace("_", "-") for found in re.findall(r"\bADVENTURES_([A-Z_]+)\b", text)}
    assert variables - {"cache"} <= known_flags()
    for line in text.splitlines():
        arguments = line.partition("adventures-server")[2]
        if not line.startswith(("RUN", "COPY")) and "cargo" not in line:
            assert set(re.findall(r'"?--([a-z][a-z-]*)', arguments)) <= known_flags(), line


def test_the_container_is_not_root_and_writes_nothing() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001$", dockerfile, re.MULTILINE)
    compose = (DEPLOY / "compose.yaml").read_text()
    assert "read_only: true" in compose
    assert "127.0.0.1:8080:8080" in compose
    assert ":?" in compose, "without a key it must not start"


def test_the_unit_is_one() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine")
    finished = subprocess.run(
        ["systemd-analyze", "verify", DEPLOY / "adventures.service"], capture_output=True, text=True, timeout=60
    )
    problems = [line for line in finished.stderr.splitlines() if "adventures" in line and "not executable" not in line]
    assert not problems


def test_modal_runs_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("modal", reason="modal is not installed")
    spec = importlib.util.spec_from_file_location("modal_app", DEPLOY / "modal_app.py")
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("ADVENTURES_ALLOW_HOST", "team--adventures-serve.modal.run")
    command = module.command(library=str(tmp_path))
    assert command[command.index("--library") + 1] == str(tmp_path)
    assert command[command.index("--allow-host") + 1] == "team--adventures-serve.modal.run"
    assert "--library" not in module.command(library="/no/such/folder")
    assert "--indexes" not in command
    monkeypatch.setenv("ADVENTURES_COLBERT", "answerai-colbert-small-v1")
    command = module.command(indexes="/libraries/i")
    assert command[command.index("--indexes") + 1] == "/libraries/i"
    started: list[list[str]] = []
    flags = known_flags()
    monkeypatch.setattr(module.subprocess, "Popen", started.append)
    with pytest.warns(UserWarning, match="executing locally"):
        module.serve.local()
    assert started == [module.command()]
    assert {part[2:] for part in started[0] if part.startswith("--")} <= flags

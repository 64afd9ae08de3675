"""The commands in README.md and docs/operating.md, except for the folder of programs and the addresses of servers.

tests/test_first_minute.py runs the first commands of the README in a fresh copy.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from keyvalue_provider.config.command_line import command_line
from keyvalue_provider.packaging import archive_command
from tests.build import ROOT
from tests.conftest import DEADLINE_S, SCRIPTS, NatsServer, free_port

DOCUMENTS = ("README.md", "docs/operating.md")
#: The program `nats` is not part of this project. In the tests, this takes its place.
REQUEST = """
import asyncio, os, sys
from nats import connect

async def main():
    client = await connect(os.environ["NATS_URL"])
    print((await client.request(sys.argv[2], sys.argv[3].encode(), timeout=30)).data.decode())
    await client.close()
assert sys.argv[1] == "request"
asyncio.run(main())
"""
#: Runs a provider until the end of the block. It waits until the provider serves, as a reader does.
BEGIN = """
set -m
serving() {
  "$@" 2>>log &
  until grep -q "ready: serving" log; do kill -0 $! || { cat log; exit 1; }; sleep 0.02; done
}
"""


def console_blocks() -> list[tuple[str, str]]:
    """Return the blocks with commands and their outputs, with the documents that contain them."""
    return [
        (name, block)
        for name in DOCUMENTS
        for block in re.findall(r"^```console\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
    ]


def run(script: str, cwd: Path, server: NatsServer) -> str:
    """Run a script of bash with the installed commands in its PATH. Return its output."""
    (programs := cwd / "programs").mkdir()
    (programs / "nats").write_text(f"#!{SCRIPTS}/python\n{REQUEST}")
    (programs / "nats").chmod(0o755)
    environment = {"PATH": f"{programs}{os.pathsep}{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "NATS_URL": server.url}
    environment["KEYVALUE_NATS"] = server.url
    done = subprocess.run(
        [
            "bash",
            "-e",
            "-c",
            script.replace("127.0.0.1:4222", f"127.0.0.1:{server.port}").replace("6380", str(free_port())),
        ],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(("document", "block"), console_blocks())
def test_a_block_of_commands(
    document: str, block: str, tmp_path: Path, new_nats_server: Callable[[str], NatsServer]
) -> None:
    script = [BEGIN]
    if not re.search(
        r"keyvalue-inmemory( serve .*)?$", block, re.MULTILINE
    ):  # about a provider that a host has started
        script.append(
            'hosted() { echo \'{"lattice_rpc_url": "127.0.0.1:4222"}\' | base64 | keyvalue-inmemory; }; serving hosted'
        )
    for line in block.splitlines():
        if line.startswith("$ "):
            command = line.removeprefix("$ ").removeprefix(".venv/bin/")
            if re.search(r"keyvalue-inmemory( serve .*)?$", command):
                command = f"block() {{ {command}; }}; serving block"
            script.append(command)
    server = new_nats_server(f"jetstream {{ store_dir: {json.dumps(str(tmp_path / 'streams'))} }}")
    printed = run("\n".join([*script, "kill %1", "wait || true"]), tmp_path, server).splitlines()
    expected = [line for line in block.splitlines() if not line.startswith("$ ")]
    assert [line for line in expected if without_times(line) not in map(without_times, printed)] == []


def without_times(line: str) -> str:
    """Return a line with all times replaced by the same one."""
    return re.sub(r"\d+\.\d+ ms", "0.00 ms", line)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_text_are_accepted(document: str) -> None:
    found = re.findall(r"`keyvalue-inmemory ([^`]+)`", (ROOT / document).read_text())
    assert found or document == "README.md"
    for text in found:
        words = text.split()
        if words[0] == "archive":
            parser, words = archive_command._parser(), words[1:]
        else:
            parser = command_line()
        if words[0] not in ("make", "import-snapshot", "export-snapshot"):  # with the options that the text leaves out
            parser.parse_args(words)

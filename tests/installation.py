"""A whole installation for tests: `manage.py up` on a home of its own, as a newcomer runs it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from decisioning.embedded import PROJECT


def soon(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass
class Installation:
    """`manage.py up` on a home of its own, as a newcomer runs it."""

    home: Path
    printed: list[str] = field(default_factory=list)
    process: "subprocess.Popen[str] | None" = None
    environment: dict[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    code: Path = PROJECT  # of another version, to try it

    def start(self) -> float:
        """Seconds until it says that it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "manage.py", "up", "--no-demo", "--home", str(self.home), "--port", str(port)]
        command += self.options
        began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=self.code,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean_environment() | self.environment,
        )
        assert self.process.stdout
        self.printed = []
        for line in self.process.stdout:
            self.printed.append(line)
            if "Ctrl-C stops" in line:
                return time.monotonic() - began
        self.process.communicate(timeout=30)
        raise AssertionError("".join(self.printed))

    def stop(self, number: signal.Signals = signal.SIGINT) -> float:
        """Seconds until it has ended."""
        assert self.process
        if self.process.poll() is not None:
            return 0
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return time.monotonic() - began

    def manage(self, *arguments: str, code: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """A command in a second terminal, where nothing is set but the home."""
        environment = clean_environment() | {"DECISIONING_HOME": str(self.home)}
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(
            command, cwd=code or self.code, env=environment, text=True, capture_output=True, check=False
        )

    def credentials(self) -> dict[str, str]:
        held: dict[str, str] = json.loads((self.home / "credentials.json").read_text())
        return held

    def api(self, key: str) -> int:
        """The status of a request with a key."""
        url = f"{self.credentials()['url']}/api/experiments"
        return httpx.get(url, headers={"Authorization": f"Bearer {key}"}, timeout=10).status_code

    def find(self, pattern: str) -> list[int]:
        """Process ids by command line, parents first."""
        return sorted(number for number, line in self.processes().items() if re.search(pattern, line))

    def processes(self) -> dict[int, str]:
        """Every process that belongs to it, but the supervisor."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.home) in (folder / "environ").read_text() + (folder / "cmdline").read_text():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        return {found_pid: line for found_pid, line in found.items() if "manage.py up" not in line}


def clean_environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("DATABASE", "REDIS", "DECISIONING"))
    }

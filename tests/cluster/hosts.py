"""Hosts on one machine: each a network namespace with an address, a cable that can be pulled, and processes of its own.

They hang on one bridge, on which we have an address as well. Needs root and iproute2; nothing leaves the machine.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from decisioning.embedded import PROJECT

NET = "10.214.97"
BRIDGE, ISLAND = "portal-br", "portal-island"


def ip(*arguments: str, check: bool = True) -> str:
    """`ip` with these arguments; what it says."""
    done = subprocess.run([_IP, *arguments], check=False, text=True, capture_output=True)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


_IP = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin") or "ip"


class Host:
    """A host of the test's own. number: of its address."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.address = name, f"{NET}.{number}"
        self.space, self.cable = f"portal-{name}", f"pv-{name}"
        self.folder = folder / name
        self.folder.mkdir()
        self.running: list[subprocess.Popen[bytes]] = []
        ip("netns", "add", self.space)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        ip("link", "set", self.cable, "master", BRIDGE, "up")
        self._inside("addr", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("link", "set", "eth0", "up")
        self._inside("link", "set", "lo", "up")

    def _inside(self, *arguments: str) -> None:
        ip("-n", self.space, *arguments)

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        ends_by: str = "KILL",
        as_root: bool = True,
        log: str = "",
    ) -> "subprocess.Popen[bytes]":
        """Start a process here, which ends when we do. as_root: False for PostgreSQL, which refuses root."""
        guise = [] if as_root else ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
        leash = ["setpriv", "--pdeathsig", ends_by]
        with (self.folder / f"{log or Path(command[0]).name}.log").open("ab") as sink:
            process = subprocess.Popen(
                [_IP, "netns", "exec", self.space, *guise, *leash, *command],
                cwd=PROJECT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def ask(
        self, command: Sequence[str], *, given: str = "", seconds: float = 20
    ) -> "subprocess.CompletedProcess[str]":
        """Run something here and wait for it."""
        return subprocess.run(
            [_IP, "netns", "exec", self.space, *command],
            cwd=PROJECT,
            check=False,
            text=True,
            capture_output=True,
            input=given,
            timeout=seconds,
        )

    def cut_off(self) -> None:
        """Pull the cable: nothing comes in or out any more, and nobody is told."""
        ip("link", "set", self.cable, "down")

    def join(self) -> None:
        """Back on the one network, as before."""
        ip("link", "set", self.cable, "master", BRIDGE, "up")

    def strand(self) -> None:
        """Move to a network of its own, which all stranded hosts share: they reach each other and nobody else."""
        ip("link", "set", self.cable, "master", ISLAND)

    def take_over(self, address: str) -> None:
        """Answer for an address from now on, as a standby does."""
        self._inside("addr", "add", f"{address}/24", "dev", "eth0")
        self.ask(["arping", "-q", "-c", "2", "-U", "-I", "eth0", address]) if shutil.which("arping") else None

    def kill(self) -> None:
        """Pull the plug: every process here ends at once."""
        for pid in ip("netns", "pids", self.space, check=False).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in self.running:
            process.wait(20)
        self.running.clear()

    def remove(self) -> None:
        self.kill()
        ip("netns", "del", self.space, check=False)
        ip("link", "del", self.cable, check=False)


def lay_bridge() -> None:
    """The one network of all hosts, with our own address on it."""
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    ip("link", "add", ISLAND, "type", "bridge")
    ip("link", "set", ISLAND, "up")


def take_bridge_away() -> None:
    for bridge in (BRIDGE, ISLAND):
        ip("link", "del", bridge, check=False)

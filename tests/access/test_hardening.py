"""What the portal tells browsers, over plain HTTP on loopback and behind TLS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

PROJECT = Path(__file__).resolve().parents[2]
_SAY = """
import json, django
from django.conf import settings
django.setup()
from django.test import Client
from django.contrib.auth.models import AnonymousUser
page = Client(headers={"Host": "decisions.example.org", "X-Forwarded-Proto": "https"}, REMOTE_ADDR="10.0.0.1").get("/healthz")
plain = Client(headers={"Host": "decisions.example.org", "X-Forwarded-Proto": "https"}, REMOTE_ADDR="192.0.2.1").get("/healthz")
print(json.dumps({"headers": dict(page.headers), "plain": dict(plain.headers), "session": settings.SESSION_COOKIE_NAME, "csrf": settings.CSRF_COOKIE_NAME,
  "secure": [settings.SESSION_COOKIE_SECURE, settings.CSRF_COOKIE_SECURE, settings.SESSION_COOKIE_HTTPONLY, settings.SESSION_COOKIE_PATH, settings.SESSION_COOKIE_DOMAIN,
             settings.CSRF_COOKIE_PATH, settings.CSRF_COOKIE_DOMAIN], "debug": settings.DEBUG}))
"""


def in_production(*command: str) -> subprocess.CompletedProcess[str]:
    """A process of its own with the environment of a production profile and no database."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DECISIONING_", "DATABASE_", "DJANGO_"))
    }
    environment |= {
        "DECISIONING_URL": "https://decisions.example.org",
        "DECISIONING_SECRET_KEY": os.urandom(48).hex(),
        "DECISIONING_TRUSTED_PROXIES": "10.0.0.0/8",
        "DECISIONING_ROLE": "web",
        "DJANGO_SETTINGS_MODULE": "decisioning.settings",
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_behind_tls_cookies_are_bound_to_the_host_and_browsers_stay_on_https() -> None:
    done = in_production("-W", "ignore", "-c", _SAY)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["session"], said["csrf"]) == ("__Host-session", "__Host-csrf")
    assert said["secure"] == [True, True, True, "/", None, "/", None]
    assert said["headers"]["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains; preload"
    assert "Strict-Transport-Security" not in said["plain"], "X-Forwarded-Proto of a stranger was believed"
    assert said["debug"] is False


def test_the_deploy_check_of_a_production_profile_has_nothing_to_say() -> None:
    done = in_production("manage.py", "check", "--deploy", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/sign-in", "/admin/login/", "/api/experiments", "/nowhere", "/api/schemas"])
def test_every_answer_carries_the_headers(path: str) -> None:
    answer = Client().get(path)
    policy = answer["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "geolocation=()" in answer["Permissions-Policy"]


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/sign-in", "/admin/login/", "/sign-out"])
def test_forms_without_a_csrf_token_are_refused(path: str) -> None:
    assert Client(enforce_csrf_checks=True).post(path, {"username": "x", "password": "y"}).status_code == 403


def test_no_secret_has_a_default() -> None:
    text = (PROJECT / "decisioning" / "settings.py").read_text()
    assert "os.urandom" in text  # a key nobody set is a key nobody knows
    assert settings.DEBUG is False

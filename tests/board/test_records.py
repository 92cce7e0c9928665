"""What was written down can be read, filtered and taken along; keys and pictures come and go."""

import io
import re

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from PIL import Image

from decisioning.access.models import ApiKey, Membership, Team
from experiments.models import Asset
from gates.models import Policy, PolicyVersion, Recommendation
from tests.board.scenes import Scene, person
from tests.conftest import as_role


def png(size: tuple[int, int] = (1, 1)) -> bytes:
    """A picture in which hardly anything repeats."""
    out = io.BytesIO()
    Image.effect_noise(size, 90).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def admin(growth: Team) -> Client:
    client = Client()
    client.force_login(person("ada", growth, "admin"))
    return client


def test_the_audit_shows_who_paused_what_and_is_filtered_by_experiment(board: Client, scene: Scene) -> None:
    e = scene.experiment(rows=False)
    other = scene.experiment("Other idea", rows=False)
    board.post(f"/experiments/{e.key}/to/paused")

    text = board.get(f"/audit?object={e.key}").text

    assert "Experiment changed" in text
    assert "ines" in text
    assert '<ins><span class="sr">after: </span>paused</ins>' in text
    assert other.name not in text
    assert "paused" in board.get(f"/audit.csv?object={e.key}").text
    assert "No entry matches" in board.get("/audit?who=nobody-at-all").text


def test_why_a_proposal_was_superseded_stands_in_the_timeline_the_audit_and_the_admin(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment(rows=False)
    root = Client()
    root.force_login(person("root", scene.team, admin=True))
    proposal = scene.proposal(e)
    with as_role("owner"):
        proposal.superseded_at, proposal.superseded_because = scene.now, Recommendation.Superseded.POLICY_CHANGED
        proposal.save()

    timeline = board.get(f"/experiments/{e.key}").text.split('id="timeline"')[1]

    assert "Another policy judges now, and under it the same rows no longer give it." in timeline.replace("\xa0", " ")
    assert "Evidence was corrected" not in timeline
    assert "policy_changed" in board.get(f"/audit?object={e.key}").text
    assert 'superseded_because">Policy changed<' in root.get("/admin/gates/recommendation/").text


def test_a_key_is_shown_once_and_is_refused_after_it_was_revoked(admin: Client, growth: Team) -> None:
    made = admin.post(
        "/keys", {"team": growth.pk, "scopes": ["experiments:read"], "expires_in_days": "30", "rate": "40/m"}
    )
    with as_role("owner"):
        key = ApiKey.objects.get()
    program = Client(headers={"Authorization": f"Bearer {_secret(made.text)}"})

    assert made.status_code == 201
    assert "shown this once" in made.text
    assert program.get("/api/experiments").status_code == 200
    assert _secret(made.text) not in admin.get("/keys").text
    admin.post(f"/keys/{key.pk}/revoke")
    assert program.get("/api/experiments").status_code == 401


def _secret(text: str) -> str:
    return text.split('<code class="mono">')[1].split("</code>")[0]


def test_an_agents_key_that_would_decide_is_refused_with_the_reason(admin: Client, growth: Team) -> None:
    refused = admin.post("/keys", {"team": growth.pk, "scopes": ["decisions:review"], "agent": "on"})

    assert refused.status_code == 422
    assert "agents propose, people decide" in refused.text


def test_keys_are_for_who_may_manage_them(board: Client) -> None:
    assert board.get("/keys").status_code == 403


def test_a_picture_is_kept_with_its_words_and_served_as_nothing_but_a_picture(board: Client, scene: Scene) -> None:
    e = scene.experiment(rows=False)
    picture = SimpleUploadedFile("one page.png", png(), "text/html")

    board.post(f"/experiments/{e.key}/variants/treatment/picture", {"image": picture, "alt": "All fields on one page"})

    with as_role("owner"):
        asset = Asset.objects.defer("body").get()
    assert 'alt="All fields on one page"' in board.get(f"/experiments/{e.key}").text
    assert f'<img src="/assets/{asset.pk}/small" alt="treatment: All fields on one page"' in board.get("/").text
    served = board.get(f"/assets/{asset.pk}")
    assert (served["Content-Type"], served["X-Content-Type-Options"]) == ("image/png", "nosniff")
    assert served.content.startswith(b"\x89PNG")  # drawn anew: nothing but the picture is kept


def test_a_list_loads_a_picture_of_its_own_size_that_the_browser_keeps(board: Client, scene: Scene) -> None:
    e = scene.experiment(rows=False)
    large = SimpleUploadedFile("large.png", png((1200, 900)), "image/png")
    board.post(f"/experiments/{e.key}/variants/treatment/picture", {"image": large, "alt": "The whole page"})
    with as_role("owner"):
        asset = Asset.objects.defer("body").get()

    whole, small = (board.get(f"/assets/{asset.pk}{end}") for end in ("", "/small"))

    assert Image.open(io.BytesIO(small.content)).size == (192, 120)
    assert len(small.content) * 20 < len(whole.content)
    assert (small["Content-Type"], small["X-Content-Type-Options"]) == ("image/webp", "nosniff")
    assert "max-age=86400" in small["Cache-Control"]
    assert "Cookie" in small["Vary"]
    assert Client().get(f"/assets/{asset.pk}/small").status_code == 302


@pytest.mark.parametrize(("body", "alt"), [(b"<script>alert(1)</script>", "A page"), (png(), "")])
def test_what_is_no_picture_or_has_no_words_is_not_taken(board: Client, scene: Scene, body: bytes, alt: str) -> None:
    e = scene.experiment(rows=False)
    sent = {"image": SimpleUploadedFile("x.png", body, "image/png"), "alt": alt}

    response = board.post(f"/experiments/{e.key}/variants/treatment/picture", sent, follow=True)

    assert "The picture was not taken" in response.text
    with as_role("owner"):
        assert Asset.objects.count() == 0


def test_rows_are_taken_along_as_a_spreadsheet(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=1)

    lines = board.get(f"/experiments/{e.key}/rows.csv").text.splitlines()

    assert lines[0].startswith("metric,variant,ts,value,n,variance")
    assert len(lines) > 20


def test_a_key_form_that_is_sent_again_makes_no_second_key(admin: Client, growth: Team) -> None:
    form = admin.get("/keys").text.split('name="once" value="')[1].split('"')[0]
    sent = {"team": growth.pk, "scopes": ["experiments:read"], "once": form}
    assert admin.post("/keys", sent | {"scopes": []}).status_code == 422
    assert admin.post("/keys", sent).status_code == 201

    again = admin.post("/keys", sent, follow=True)

    assert "made no second one" in again.text
    with as_role("owner"):
        assert ApiKey.objects.count() == 1
    assert admin.post("/keys", sent | {"once": "another form"}).status_code == 201


def test_a_picture_that_is_too_large_is_refused_with_its_own_size(board: Client, scene: Scene) -> None:
    e = scene.experiment(rows=False)
    large = SimpleUploadedFile("large.png", b"x" * 3_000_000, "image/png")

    said = board.post(f"/experiments/{e.key}/variants/treatment/picture", {"image": large, "alt": "A"}, follow=True)

    assert "3,000,000 bytes; at most 2,097,152 are taken" in said.text


def test_the_audit_names_people_keys_and_policies_and_no_numbers(
    admin: Client, growth: Team, ines: User, scene: Scene
) -> None:
    admin.post("/keys", {"team": growth.pk, "scopes": ["experiments:read", "telemetry:write"]})
    with as_role("owner"):
        key = ApiKey.objects.get()
        policy = Policy.objects.create(name="careful", team=growth, created_at=scene.now)
        PolicyVersion.objects.create(policy=policy, team=growth, number=1, body={}, author="ines", created_at=scene.now)
        gone = Membership.objects.create(team=growth, user=User.objects.create_user("gone"), role="viewer")
        gone.delete()

    def shown(what: str) -> str:
        return re.sub(r"<[^>]+>|\s+", " ", admin.get(f"/audit?what={what}").text)

    assert "ines in growth as approver" in shown("membership")
    assert "user before: gone" in re.sub(" +", " ", shown("membership"))
    assert str(key) in shown("apikey")
    assert "after: experiments:read, telemetry:write" in re.sub(" +", " ", shown("apikey"))
    assert "careful v1" in shown("policyversion")

"""Import of KPI rows from CSV in the admin: choose a file, see what it would change, then do it."""

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from telemetry.columns import COLUMNS, NEEDED
from telemetry.csv_import import FileRefused, Outcome, load, refused_file

MOST_BYTES = 4 * 1024 * 1024
_SALT = "telemetry.admin_import"


class FileForm(forms.Form):
    """Which team's rows, and the file."""

    team = forms.ModelChoiceField(Team.objects.all())
    file = forms.FileField(
        label="CSV file",
        help_text=f"Columns: {', '.join(NEEDED)}; also {', '.join(COLUMNS[4:])}. The spread once: variance, stddev or standard_error; or sum and sum_squares in place of value and spread.",
    )

    def clean_file(self) -> str:
        file: UploadedFile[Any] = self.cleaned_data["file"]
        if (file.size or 0) > MOST_BYTES:
            raise forms.ValidationError(f"The file has {file.size:,} bytes; at most {MOST_BYTES:,} are taken.")
        try:
            return bytes(file.read()).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise forms.ValidationError("The file is not UTF-8. Export it again as UTF-8.") from error


def import_rows(request: HttpRequest, site: AdminSite) -> HttpResponse:
    """GET: the form. POST with a file: what it would do. POST of that page: do it, or hand back the refused lines."""
    if "held" in request.POST:
        return _second_step(request)
    form = FileForm(request.POST or None, request.FILES or None)
    context: dict[str, Any] = {**site.each_context(request), "title": "Import KPI rows", "form": form}
    if request.method == "POST" and form.is_valid():
        team, text = form.cleaned_data["team"], form.cleaned_data["file"]
        try:
            context["outcome"] = _load(request, team, text, keep=False)
            context["held"] = signing.dumps([team.pk, text], salt=_SALT, compress=True)
        except FileRefused as refusal:
            form.add_error("file", str(refusal))
    return TemplateResponse(request, "admin/telemetry/import.html", context)


def _second_step(request: HttpRequest) -> HttpResponse:
    try:
        team_id, text = signing.loads(request.POST["held"], salt=_SALT, max_age=3600)
    except signing.BadSignature:
        messages.error(request, "That preview is older than an hour. Choose the file again.")
        return HttpResponseRedirect(request.path)
    team = Team.objects.filter(pk=team_id).first()
    if team is None:
        raise PermissionDenied
    if "refused" in request.POST:
        outcome = _load(request, team, text, keep=False)
        return HttpResponse(
            refused_file(outcome),
            content_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": 'attachment; filename="refused-rows.csv"'},
        )
    outcome = _load(request, team, text, keep=True)
    told = (
        f"{outcome.accepted} rows were new, {outcome.changed} replaced a value, {outcome.duplicates} said nothing new"
    )
    messages.success(request, f"{told}; {len(outcome.refused)} were refused.")
    return HttpResponseRedirect(reverse("admin:telemetry_source_changelist"))


def _load(request: HttpRequest, team: Team, text: str, *, keep: bool) -> Outcome:
    principal: Principal = request.principal  # type: ignore[attr-defined]
    if not principal.may(Scope.TELEMETRY, team.pk):
        raise PermissionDenied
    return load(text, team=team, now=timezone.now(), keep=keep)  # noqa: TID251 - a door reads the clock

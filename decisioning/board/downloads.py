"""Files that people take along."""

import csv
from collections.abc import Iterable

from django.http import HttpResponse


def spreadsheet(name: str, rows: Iterable[Iterable[object]]) -> HttpResponse:
    """CSV that a spreadsheet opens without running what somebody wrote into a name."""
    response = HttpResponse(
        content_type="text/csv; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )
    out = csv.writer(response)
    for row in rows:
        out.writerow(
            [f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell for cell in row]
        )
    return response

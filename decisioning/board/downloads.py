"""Files that people take along."""

import csv
from collections.abc import Iterable

from django.http import HttpResponse

MOST, MOST_OF_ONE = 10_000, 200_000
"""Rows of one file: of a list, and of one experiment's telemetry. Whoever gathers them gathers one more, so that a cut is seen."""


def spreadsheet(name: str, rows: Iterable[Iterable[object]], *, most: int = MOST) -> HttpResponse:
    """CSV that a spreadsheet opens without running what somebody wrote into a name. A heading, then rows; a cut is told in the last."""
    response = HttpResponse(
        content_type="text/csv; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )
    out = csv.writer(response)
    for number, row in enumerate(rows):
        if number > most:
            out.writerow([f"Cut off after {most:,} rows: narrow the list down, or read all of it over the API."])
            break
        out.writerow(
            [f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell for cell in row]
        )
    return response

"""OpenAPI 3.1 at /api/openapi.json: every address, every method, every status."""

import functools
import json
from typing import Any

from django.http import HttpResponse
from django.urls import include, path
from drf_spectacular.generators import SchemaGenerator
from rest_framework.request import Request

from decisioning.api.base import PortalView
from decisioning.api.codes import CODES
from decisioning.api.schema import COMPONENTS
from decisioning.api.vocabulary import FIELDS


class OpenApi(PortalView):
    """This document."""

    def check_permissions(self, request: Request) -> None:
        """It is no secret."""

    def get(self, request: Request) -> HttpResponse:
        """OpenAPI 3.1; `/api/v1/` is the same tree."""
        return HttpResponse(rendered(), content_type="application/json")


@functools.cache
def rendered() -> bytes:
    """The document as bytes; it changes with the program alone."""
    patterns = [path("api/", include("decisioning.api.urls"))]
    generator = SchemaGenerator(patterns=patterns)  # type: ignore[no-untyped-call]
    document = generator.get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    document["components"]["schemas"] |= COMPONENTS
    _let_metrics_be_keys(document["components"]["schemas"])
    _name_every_code(document["components"]["schemas"])
    _say_every_field(document["components"]["schemas"])
    for methods in document["paths"].values():
        for operation in methods.values():
            if "requestBody" in operation:
                operation["requestBody"]["required"] = True
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "bearerFormat": "dk_<id>_<secret>"},
        "session": {"type": "apiKey", "in": "cookie", "name": "decisioning_session"},
    }
    return json.dumps(document).encode()


def _let_metrics_be_keys(schemas: dict[str, Any]) -> None:
    """A target KPI may be the bare key of its metric, and its metric a key or a metric of its own."""
    key = {"type": "string", "description": "Key of a metric that is registered.", "examples": ["finished_sign_up"]}
    schemas["TargetKpiIn"]["properties"]["metric"] = {"anyOf": [key, {"$ref": "#/components/schemas/MetricCreate"}]}
    for name in ("ExperimentIn", "PatchedExperimentPatch", "ExperimentPatch"):
        if name in schemas:
            kpis = schemas[name]["properties"]["target_kpis"]
            kpis["items"] = {"anyOf": [key, {"$ref": "#/components/schemas/TargetKpiIn"}]}


def _name_every_code(schemas: dict[str, Any]) -> None:
    """A schema of its own for codes, with what each means. No enum: codes are added, and a client of today has to take those of tomorrow."""
    told = {
        code: {"description": f"{what} {to_do}", "example": detail} for code, (what, to_do, detail) in CODES.items()
    }
    schemas["ErrorCode"] = {
        "type": "string", "description": "Why something is refused; stable, and more may be added.", "examples": ["naive_timestamp"], "x-codes": told,
    }  # fmt: skip
    for name in ("ProblemOut", "ErrorOut"):
        named = next(schemas[each] for each in (name, name.removesuffix("Out")) if each in schemas)
        named["properties"]["code"] = {"$ref": "#/components/schemas/ErrorCode"}


def _say_every_field(schemas: dict[str, Any]) -> None:
    """A description and an example beside what a shape says itself. What refers to another schema may have them too, since OpenAPI 3.1."""
    for schema in schemas.values():
        for name, said in schema.get("properties", {}).items():
            what, such_as = FIELDS.get(name, ("", None))
            if what:
                said.setdefault("description", what)
                said.setdefault("examples", [such_as])

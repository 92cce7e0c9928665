"""OpenAPI 3.1 at /api/openapi.json: every address, every method, every status."""

import functools
import json

from django.http import HttpResponse
from django.urls import include, path
from drf_spectacular.generators import SchemaGenerator
from rest_framework.request import Request

from decisioning.api.base import PortalView


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
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "bearerFormat": "dk_<id>_<secret>"},
        "session": {"type": "apiKey", "in": "cookie", "name": "decisioning_session"},
    }
    return json.dumps(document).encode()

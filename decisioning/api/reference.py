"""The OpenAPI document as a page at /api/docs, for people. Made on the server out of the document itself; no script, nothing from elsewhere."""

import functools
import json
from collections.abc import Iterator
from typing import Any

from django.http import HttpResponse
from django.template.loader import render_to_string
from rest_framework.request import Request

from decisioning.api.base import PortalView
from decisioning.api.openapi import rendered

type Part = dict[str, str]
"""A piece of a type in words: `text`, and `to` when it is a shape with an entry of its own."""

_METHODS = ("get", "post", "patch", "put", "delete")


class Reference(PortalView):
    """The same document, to read."""

    def check_permissions(self, request: Request) -> None:
        """It is no secret."""

    def get(self, request: Request) -> HttpResponse:
        """Every address and every shape on one page; search it with the browser."""
        return HttpResponse(_page(), content_type="text/html; charset=utf-8")


@functools.cache
def _page() -> str:
    document: dict[str, Any] = json.loads(rendered())
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                told = methods[method]
                groups.setdefault(told["tags"][0], []).append(_operation(path, method, told))
    shapes = [
        {
            "name": name,
            "text": shape.get("description", ""),
            "words": shape.get("enum", []),
            "fields": list(_fields(shape)),
            "codes": [{"code": code, **told} for code, told in shape.get("x-codes", {}).items()],
        }
        for name, shape in sorted(document["components"]["schemas"].items())
    ]
    page = {
        "title": document["info"]["title"],
        "groups": [{"name": name, "operations": operations} for name, operations in groups.items()],
        "shapes": shapes,
    }
    return render_to_string("api/reference.html", {"title": "API", "page": page})


def _operation(path: str, method: str, told: dict[str, Any]) -> dict[str, Any]:
    answers = [
        {"status": status, "text": answer.get("description", ""), "media": media, "type": kind}
        for status, answer in told["responses"].items()
        for media, kind in _contents(answer) or [("", [])]
    ]
    return {
        "id": told["operationId"],
        "method": method.upper(),
        "path": path,
        "summary": told.get("summary", ""),
        "description": told.get("description", ""),
        "open": not told.get("security"),
        "parameters": [
            {
                "name": each["name"],
                "where": each["in"],
                "type": list(_parts(each["schema"])),
                "text": each.get("description", ""),
            }
            for each in told.get("parameters", [])
        ],
        "bodies": [{"media": media, "type": kind} for media, kind in _contents(told.get("requestBody", {}))],
        "answers": [answer for answer in answers if answer["status"] < "400"],
        "refusals": [answer for answer in answers if answer["status"] >= "400"],
    }


def _contents(holder: dict[str, Any]) -> list[tuple[str, list[Part]]]:
    return [(media, list(_parts(content.get("schema", {})))) for media, content in holder.get("content", {}).items()]


def _fields(shape: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, field in shape.get("properties", {}).items():
        yield {
            "name": name,
            "needed": name in shape.get("required", ()),
            "type": list(_parts(field)),
            "text": field.get("description", ""),
        }


def _parts(schema: dict[str, Any]) -> Iterator[Part]:
    """A schema in words.

    >>> [part["text"] for part in _parts({"type": "array", "items": {"$ref": "#/components/schemas/RowOut"}})]
    ['array of ', 'RowOut']
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield {"text": name, "to": f"shape-{name}"}
        return
    for word in ("oneOf", "anyOf", "allOf"):
        for place, choice in enumerate(schema.get(word, ())):
            if place:
                yield {"text": " and " if word == "allOf" else " or "}
            yield from _parts(choice)
        if word in schema:
            return
    kinds = schema.get("type", "anything")
    if kinds == "array":
        yield {"text": "array of "}
        yield from _parts(schema.get("items", {}))
        return
    if "properties" in schema:
        names = ", ".join(schema["properties"])
        yield {"text": f"object with {names}"}
        return
    words = [str(word) for word in schema.get("enum", ())]
    text = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    yield {"text": " | ".join(words) or text.replace("string", schema.get("format", "string"))}

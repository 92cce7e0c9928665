"""Every answer is held against the OpenAPI document: its status is declared, and its body has the declared shape."""

import functools
import json
import re
from typing import Any

from django.http import HttpResponse
from jsonschema import Draft202012Validator

from decisioning.api.codes import CODES
from decisioning.api.openapi import rendered


@functools.cache
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rendered())
    return found


def check(method: str, path: str, response: HttpResponse) -> None:
    """Raise AssertionError when the answer is not what the document declares for this address."""
    template = template_of(path)
    operation = document()["paths"].get(template, {}).get({"HEAD": "get"}.get(method, method.lower()))
    if operation is None:
        assert response.status_code in (401, 404, 405, 429), (method, path, response.status_code)
        return
    declared = operation["responses"].get(str(response.status_code))
    assert declared is not None, f"{method} {template} answers {response.status_code}, which is not declared."
    if not response.content:
        return
    media = response["Content-Type"].partition(";")[0]
    assert media in declared.get("content", {}), f"{method} {template} {response.status_code}: {media} is not declared."
    if media == "application/problem+json":
        problem = json.loads(response.content)
        codes = {problem["code"], *(error["code"] for error in problem["errors"])}
        assert codes <= CODES.keys(), f"{codes - CODES.keys()} is not said in decisioning/api/codes.py."
    if media.endswith("json"):
        for error in _validator(template, method.lower(), response.status_code, media).iter_errors(
            json.loads(response.content)
        ):
            raise AssertionError(f"{method} {template} {response.status_code} {error.json_path}: {error.message}")


@functools.cache
def _validator(template: str, method: str, status: int, media: str) -> Draft202012Validator:
    schema = document()["paths"][template][method]["responses"][str(status)]["content"][media]["schema"]
    return Draft202012Validator({**schema, "components": document()["components"]})


def template_of(path: str) -> str:
    """The address in the document that a path belongs to; literal parts win over parameters."""
    bare = path.partition("?")[0].replace("/api/v1/", "/api/", 1)
    for template in sorted(document()["paths"], key=lambda t: t.count("{")):
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), bare):
            return str(template)
    return ""

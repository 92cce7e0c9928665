"""The OpenAPI document is complete: every address, every method, every status."""

import json
import re
from typing import Any

from django.urls import URLPattern

from decisioning.api.base import Nowhere
from decisioning.api.openapi import rendered
from decisioning.api.urls import urlpatterns
from decisioning.api.vocabulary import FIELDS
from tests.api.conftest import Caller
from tests.api.contract import document, template_of

METHODS = ("get", "post", "patch", "put", "delete")


def doors() -> list[tuple[URLPattern, Any]]:
    return [(p, p.callback.view_class) for p in urlpatterns if p.callback.view_class is not Nowhere]  # type: ignore[attr-defined]


def test_every_address_and_method_is_in_the_document() -> None:
    for pattern, view in doors():
        template = "/api/" + str(pattern.pattern).replace("<str:", "{").replace("<int:", "{").replace(">", "}").replace(
            "{pk}", "{id}"
        )
        assert template in document()["paths"]
        has = {method for method in METHODS if hasattr(view, method)}
        assert set(document()["paths"][template]) & set(METHODS) == has, template
    assert len(document()["paths"]) == len(doors())


def test_every_operation_declares_how_it_is_refused() -> None:
    for template, operations in document()["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert {"400", "401", "403", "406", "429", "500", "503"} <= statuses, (method, template)
            assert any(status < "400" for status in statuses)
            if "{" in template:
                assert "404" in statuses
            for status, answer in operation["responses"].items():
                if status >= "400":
                    assert list(answer["content"]) == ["application/problem+json"]


def test_operation_ids_are_unique_and_every_operation_says_what_it_does() -> None:
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert [operation["operationId"] for operation in operations if not operation.get("summary")] == []


def test_it_is_openapi_3_1_and_open_to_everybody(nobody: Caller) -> None:
    answer = nobody.get("/api/openapi.json")
    assert answer.status_code == 200
    assert answer.json()["openapi"].startswith("3.1")
    assert nobody.get("/api/v1/openapi.json").json() == answer.json()


def test_what_creation_requires_is_what_the_contract_says() -> None:
    assert document()["components"]["schemas"]["ExperimentIn"]["required"] == ["hypothesis", "name", "target_kpis"]
    assert template_of("/api/v1/experiments/7/kpis?limit=3") == "/api/experiments/{ref}/kpis"


def test_it_is_a_page_too_for_everybody_with_every_address_and_nothing_inline(nobody: Caller) -> None:
    answer = nobody.get("/api/docs", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    text = answer.content.decode()

    assert (answer.status_code, answer["Content-Type"]) == (200, "text/html; charset=utf-8")
    for template, operations in document()["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {template}</code>" in text
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= anchors
    assert {f"shape-{name}" for name in document()["components"]["schemas"]} <= anchors
    assert not re.search(r"<style|style=|<script(?! src=)|\son\w+=|(?:src|href)=\"(?:https?:)?//", text)


def test_no_list_of_words_is_named_after_a_hash() -> None:
    named = [name for name, shape in document()["components"]["schemas"].items() if "enum" in shape]
    assert [name for name in named if name.endswith("Enum")] == []


def test_every_field_of_the_document_is_said_with_an_example_and_no_word_is_left_over() -> None:
    schemas = json.loads(rendered())["components"]["schemas"]
    fields = [
        (shape, name, said) for shape, schema in schemas.items() for name, said in schema.get("properties", {}).items()
    ]
    assert [
        f"{shape}.{name}" for shape, name, said in fields if not (said.get("description") and "examples" in said)
    ] == []
    assert sorted(set(FIELDS) - {name for _, name, _ in fields}) == []


def test_bodies_are_required_and_those_of_rows_and_events_have_names() -> None:
    document = json.loads(rendered())
    bodies = {
        f"{method} {path}": operation["requestBody"]
        for path, methods in document["paths"].items() for method, operation in methods.items() if "requestBody" in operation
    }  # fmt: skip
    assert [of for of, body in bodies.items() if not body.get("required")] == []
    named = {
        media: schema["schema"]["$ref"].rpartition("/")[2]
        for media, schema in bodies["post /api/events"]["content"].items()
    }
    assert named == {
        "application/cloudevents+json": "CloudEvent", "application/cloudevents-batch+json": "CloudEventBatch",
        "application/json": "CloudEventData",
    }  # fmt: skip
    assert bodies["post /api/experiments/{ref}/kpis"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/KpiRows"
    )
    kpis = document["components"]["schemas"]["ExperimentIn"]["properties"]["target_kpis"]["items"]["anyOf"]
    assert kpis[0]["type"] == "string", "a bare metric key"

#!/usr/bin/env bash
# openapi-python-client 0.29.1: of an operation whose body comes in several media types, one of them a list, it writes a function that
# raises TypeError whatever it is called with: isinstance() of a parameterized list. It warns of nothing while it generates, with
# --fail-on-warning too. Any API that takes one thing or a batch of them (CloudEvents over HTTP, say) has a client that cannot send.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check openapi-python-client==0.29.1
cd "$place"
cat >openapi.json <<'JSON'
{"openapi": "3.1.0", "info": {"title": "Events", "version": "1"}, "paths": {"/events": {"post": {"operationId": "send", "tags": ["events"],
  "parameters": [{"name": "atomic", "in": "query", "schema": {"type": "boolean"}}],
  "requestBody": {"required": true, "content": {
    "application/cloudevents+json": {"schema": {"$ref": "#/components/schemas/Event"}},
    "application/cloudevents-batch+json": {"schema": {"type": "array", "items": {"$ref": "#/components/schemas/Event"}}}}},
  "responses": {"204": {"description": "Taken."}}}}},
 "components": {"schemas": {"Event": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}}}}
JSON
PATH="$place/venv/bin:$PATH" openapi-python-client generate --path openapi.json --output-path generated --meta none --fail-on-warning
venv/bin/python - <<'PY'
import sys

from generated.api.events import send
from generated.models import Event

for body in (Event(id="1"), [Event(id="1")]):
    try:
        send._get_kwargs(body=body)
        sys.exit(1)
    except TypeError as error:
        print(f"{type(body).__name__}: {error}")
PY

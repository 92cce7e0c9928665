"""The shapes of answers, for the OpenAPI document. Nothing is serialized by them; tests hold every answer against them."""

"""The description of a server's endpoints for programs, as OpenAPI 3.1."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from inception_jax.trained.serving.work import Limits

ERROR = {"$ref": "#/components/schemas/Error"}
PARAMETERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "top": ("How many of the most probable classes are returned.", {"type": "integer", "minimum": 1, "default": 5}),
    "grad_cam": (
        "Whether to add a heat map of the evidence for a class (Grad-CAM); needs a run whose network has feature maps.",
        {"type": "integer", "enum": [0, 1], "default": 0},
    ),
    "class": ("The class of the heat map, by its name; by default the most probable one.", {"type": "string"}),
}
REFUSALS = {
    "400": "The picture is damaged or missing, or a parameter is not allowed.",
    "408": "The picture was sent too slowly.",
    "413": "The request or the picture is too large.",
    "415": "The body is not a picture of a known format.",
    "503": "The server is too busy, or shuts down: try again after Retry-After seconds.",
}
ANSWER = {
    "type": "object",
    "required": ["classes"],
    "properties": {
        "classes": {
            "type": "array",
            "description": "The most probable classes first.",
            "items": {
                "type": "object",
                "required": ["name", "probability"],
                "properties": {
                    "name": {"type": "string"},
                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        },
        "grad_cam": {"type": "string", "format": "uri", "description": "A PNG picture as a data URL."},
    },
}


def description(name: str, limits: Limits, *, token: bool) -> dict[str, Any]:
    """The OpenAPI document of a server.

    Args:
      name: of the network.
      limits: what they allow is said in the descriptions.
      token: whether requests need a token, except for what says how the server is.
    """
    status = _get("A status", "application/json", {"type": "object", "required": ["status"]})
    ready = _get("Whether it accepts pictures", "application/json", {"type": "object", "required": ["status"]})
    ready["get"]["responses"]["503"] = {
        "description": "It shuts down.", "content": {"application/json": {"schema": {"type": "object"}}}
    }  # fmt: skip
    example = _get("A picture to try the network on", "image/png", secret=token)
    example["get"]["parameters"] = [
        {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
    ]
    components: dict[str, Any] = {
        "schemas": {
            "Answer": ANSWER,
            "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        }
    }
    if token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": importlib.metadata.version("inception-jax")},
        "servers": [{"url": "."}],
        "paths": {
            "/": _get("The page for people", "text/html"),
            "/predict": {"post": _predict(limits, token)},
            "/examples/{number}": example,
            "/health": status,
            "/live": status,
            "/ready": ready,
            "/metrics": _get("Metrics for Prometheus", "text/plain", secret=token),
            "/openapi.json": _get("This description", "application/json", {"type": "object"}),
        },
        "components": components,
    }


def _predict(limits: Limits, token: bool) -> dict[str, Any]:
    file = {"type": "string", "contentMediaType": "image/*", "contentEncoding": "binary"}
    form = {"type": "object", "properties": {"picture": file}}
    return _operation(
        "The most probable classes of a picture",
        {"200": _content("The classes", "application/json", {"$ref": "#/components/schemas/Answer"})}
        | {status: _content(why, "application/json", ERROR) for status, why in REFUSALS.items()},
        secret=token,
    ) | {
        "parameters": [
            {"name": name, "in": "query", "description": words, "schema": dict(schema)}
            for name, (words, schema) in PARAMETERS.items()
        ],
        "requestBody": {
            "description": f"A picture of up to {limits.max_mb:g} MB and {limits.max_megapixels:g} million pixels, as "
            "the body or as a file of a form.",
            "required": True,
            "content": {"image/*": {}, "application/octet-stream": {}, "multipart/form-data": {"schema": form}},
        },
    }


def _get(summary: str, media: str, schema: Mapping[str, Any] | None = None, *, secret: bool = False) -> dict[str, Any]:
    return {"get": _operation(summary, {"200": _content(summary, media, schema or {"type": "string"})}, secret=secret)}


def _operation(summary: str, responses: Mapping[str, Any], *, secret: bool) -> dict[str, Any]:
    """An operation; any of them may be refused for its Host header."""
    others = {"default": _content("Refused, with the reason.", "application/json", ERROR)}
    security = {"security": [{"token": []}]} if secret else {}
    return {"summary": summary, "responses": {**responses, **others}, **security}


def _content(words: str, media: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": words, "content": {media: {"schema": dict(schema)}}}

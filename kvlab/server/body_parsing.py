"""Request bodies on their way from bytes to a checked object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from kvlab.server.errors import ApiError
from kvlab.server.json_body import parse_json

Body = TypeVar("Body", bound=BaseModel)


def parse_body(model: type[Body], body: bytes) -> Body:
    """Parse and check a body. Raises ApiError 400 that names a wrong field."""
    parsed = parse_json(body)
    if not isinstance(parsed, Mapping):
        raise ApiError(400, "the request must be a JSON object")
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        # Where a field may have several forms, each has its error: that of the form which fits best lies deepest.
        closest = max(errors, key=lambda one: len(one["loc"]))
        field = ".".join(str(part) for part in closest["loc"])
        message = f"{field}: {closest['msg']}" if field else str(closest["msg"])
        raise ApiError(400, message, param=field or None) from None


def described_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the part of a route's OpenAPI description that says which body it reads."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def body_schemas(models: list[type[BaseModel]]) -> dict[str, Any]:
    """Return the OpenAPI schemas that :func:`described_body` refers to, by name."""
    template = "#/components/schemas/{model}"
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=template)
    found: dict[str, Any] = schemas["$defs"]
    return found

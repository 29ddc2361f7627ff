"""The base of all request bodies."""

from pydantic import BaseModel, ConfigDict


class RequestBody(BaseModel):
    """A JSON object from a client. Unknown fields are ignored; NaN and infinity are refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

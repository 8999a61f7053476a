"""What every spec and every section of a recipe extends: it does not change, and knows no key but its own."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

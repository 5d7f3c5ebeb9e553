"""The base of all sections."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Read once, never changed; a key that it does not have is an error.

    Values are taken as they are: `true` is no number, "5" no integer, and no number is infinite. The text below a field
    is its meaning, which `hybridflow config --keys` prints.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

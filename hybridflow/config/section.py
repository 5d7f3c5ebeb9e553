"""What all sections have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Read once, never changed; a key that it does not have is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

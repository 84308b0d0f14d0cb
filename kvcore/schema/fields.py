"""What settings are made of: a frozen group, and values with their ranges."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Group(BaseModel):
    """Settings that belong together: frozen, complete, of exactly the types they have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


PositiveInt = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
ColumnName = Annotated[str, Field(min_length=1)]
RepositoryId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$")]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
RepositoryPath = Annotated[str, Field(pattern=r"^(?:[\w-][\w. -]*/)*[\w-][\w. -]*$")]
RankRatio = Annotated[float, Field(gt=0, le=1)]
RankRatios = Annotated[tuple[RankRatio, ...], Field(strict=False)]
Target = Literal["all", "response"]
Template = Literal["plain", "chat"]

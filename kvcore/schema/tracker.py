"""Which tracker mirrors a cell, and how."""

from typing import Annotated, Literal

from pydantic import Field

from kvcore.schema.fields import Group

Label = Annotated[str, Field(min_length=1, max_length=64)]


class NoTracker(Group):
    """Results are on disk only."""

    name: Literal["none"]


class WandbTracker(Group):
    """Every cell is a run of Weights & Biases as well."""

    name: Literal["wandb"]
    mode: Literal["offline", "online", "disabled"]
    project: Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")]
    entity: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None
    group: Annotated[str, Field(min_length=1, max_length=128)] | None
    tags: Annotated[tuple[Label, ...], Field(strict=False)]
    folder: Annotated[str, Field(min_length=1)] | None
    timeout_seconds: Annotated[float, Field(gt=0)]


TrackerSettings = Annotated[NoTracker | WandbTracker, Field(discriminator="name")]

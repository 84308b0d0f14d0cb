"""Which weights, and in which arithmetic."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kvcore.schema.errors import SettingError
from kvcore.schema.fields import Group, Name, PositiveInt, RepositoryId, Revision, Template


class WeightsPart(Group):
    """A file inside an installed package: one piece of a GGUF file."""

    package: str
    version: str
    file: str


class ExpectedGeometry(Group):
    """What the loaded model must look like; null: not checked."""

    layers: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None


class ModelSettings(Group):
    """Which weights, in which arithmetic, and how a prompt and a response become one text."""

    name: Name
    source: Literal["packaged", "folder", "hub"]
    parts: Annotated[tuple[WeightsPart, ...], Field(strict=False)] = ()
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    path: str | None = None
    id: RepositoryId | None = None
    revision: Revision = "main"
    gated: bool = False
    context: PositiveInt | None = None
    expected: ExpectedGeometry = ExpectedGeometry()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"
    template: Template = "plain"

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.source == "packaged" and not (self.parts and self.sha256):
            raise SettingError("model.source", self.source, "needs model.parts and model.sha256")
        if self.source == "folder" and not self.path:
            raise SettingError("model.path", self.path, "source folder needs the path of a folder")
        if self.source == "hub" and not self.id:
            raise SettingError("model.id", self.id, "source hub needs OWNER/NAME")
        if self.source != "folder" and self.path:
            raise SettingError("model.path", self.path, "goes with model=folder")
        if self.source != "hub" and self.id:
            raise SettingError("model.id", self.id, "goes with model=hub")
        if self.device_map and self.device != "auto":
            raise SettingError("model.device", self.device, "model.device_map places the model; leave this at auto")
        return self

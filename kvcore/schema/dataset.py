"""Which rows, and how they become examples."""

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kvcore.schema.errors import SettingError
from kvcore.schema.fields import ColumnName, Group, Name, PositiveInt, RepositoryId, RepositoryPath, Revision


class ColumnSettings(Group):
    """Which column of a row holds what; a row with a text column only is used verbatim."""

    instruction: ColumnName | None = None
    input: ColumnName | None = None
    output: ColumnName | None = None
    text: ColumnName | None = None

    @model_validator(mode="after")
    def _something_is_mapped(self) -> Self:
        if not (self.text or self.instruction):
            raise SettingError("dataset.columns.instruction", None, "map instruction and output, or text")
        return self


class DatasetSettings(Group):
    """Which rows, how they become examples, and how many of them."""

    name: Name
    source: Literal["pocket", "local", "hub", "github"]
    path: str | None = None
    id: RepositoryId | None = None
    revision: Revision = "main"
    split: Annotated[str, Field(min_length=1)] | None = None
    files: Annotated[tuple[RepositoryPath, ...], Field(strict=False)] = ()
    layout: Literal["rows", "glaive_chat", "visr_bench"] = "rows"
    columns: ColumnSettings
    languages: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    prompt: str = "{instruction}\n\n{input}"
    max_examples: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    max_length: Annotated[int, Field(ge=2)] = 2048

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        needed = {"pocket": ("path",), "local": ("path",), "hub": ("id", "split"), "github": ("id", "files")}
        for setting in ("path", "id", "split", "files"):
            value = getattr(self, setting)
            if setting in needed[self.source] and not value:
                raise SettingError(f"dataset.{setting}", value, f"source {self.source} needs it")
            if setting not in needed[self.source] and value:
                raise SettingError(f"dataset.{setting}", value, f"does not go with source {self.source}")
        return self

    @model_validator(mode="after")
    def _prompt_is_a_template(self) -> Self:
        allowed = SettingError("dataset.prompt", self.prompt, "may use {instruction} and {input}, and {{ }} for braces")
        try:
            fields = {field for _, field, _, _ in Formatter().parse(self.prompt) if field is not None}
        except ValueError:
            raise allowed from None
        if not fields <= {"instruction", "input"}:
            raise allowed
        return self


class LanguageSettings(Group):
    """The language of the examples."""

    name: Name

"""Typed, frozen settings for every choice a user makes, checked as a whole before anything loads."""

from collections.abc import Mapping
from difflib import get_close_matches
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class UserError(ValueError):
    """Something the user can mend: said in clear lines, without a traceback."""


class SettingError(UserError):
    """A user's setting that cannot be used: names the dotted setting, its value and what is allowed."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        """Say that `setting` has a `value` that is not `allowed`."""
        super().__init__(f"{setting} = {value!r}: {allowed}")


class SettingsError(UserError):
    """All faults of one set of settings, a line each."""


class GateError(RuntimeError):
    """A gate failed: the numbers of this run cannot be trusted."""


class _Group(BaseModel):
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


class WeightsPart(_Group):
    """A file inside an installed package: one piece of a GGUF file."""

    package: str
    version: str
    file: str


class ExpectedGeometry(_Group):
    """What the loaded model must look like; null: not checked."""

    layers: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None


class ModelSettings(_Group):
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


class ColumnSettings(_Group):
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


class DatasetSettings(_Group):
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


class LanguageSettings(_Group):
    """The language of the examples."""

    name: Name


class RankBudgetSettings(_Group):
    """Which ranks perplexity is measured at."""

    name: Literal["grid", "none"]
    key_ratios: RankRatios = ()
    value_ratios: RankRatios = ()

    @model_validator(mode="after")
    def _grid_is_complete(self) -> Self:
        for setting, ratios in (("key_ratios", self.key_ratios), ("value_ratios", self.value_ratios)):
            if len(set(ratios)) != len(ratios):
                raise SettingError(f"rank_budget.{setting}", list(ratios), "each ratio may occur once")
            if self.name == "grid" and not ratios:
                raise SettingError(f"rank_budget.{setting}", list(ratios), "a grid needs at least one ratio")
            if self.name == "none" and ratios:
                raise SettingError(f"rank_budget.{setting}", list(ratios), "rank_budget none has no ratios")
        return self


class CaptureSettings(_Group):
    """Where keys and values are read, which of them, and how many tokens at a time."""

    point: Literal["projection", "normed", "rotary"] = "projection"
    skip_first_tokens: Annotated[int, Field(ge=0)] = 0
    per_head: bool = False
    batch_tokens: PositiveInt = 1024
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 300.0


class SpectrumSettings(_Group):
    """How keys and values are accumulated."""

    precision: Literal["standard", "exact"] = "standard"


class EvaluationSettings(_Group):
    """Which tokens perplexity is measured on."""

    target: Target = "all"
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    batch_tokens: PositiveInt = 1024


class Settings(_Group):
    """Everything one cell needs to know."""

    model: ModelSettings
    dataset: DatasetSettings
    language: LanguageSettings
    rank_budget: RankBudgetSettings
    capture: CaptureSettings
    spectrum: SpectrumSettings
    evaluation: EvaluationSettings
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output_root: Annotated[str, Field(min_length=1)] = "outputs"
    gates: Literal["fail", "warn"] = "fail"


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Check plain nested values and return them as settings.

    Args:
        values: Nested mappings as read from the configuration, without interpolations.

    Raises:
        SettingsError: One line per fault; each names the dotted setting, the value and what is allowed.
    """
    faults = _language_faults(values)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()] + faults
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


def nearest(name: str, known: list[str]) -> str:
    """Name the known names closest to a misspelt one, or all of them if none is close."""
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"


def setting_names(group: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings and groups of settings."""
    names = []
    for name, field in group.model_fields.items():
        names.append(f"{prefix}{name}")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += setting_names(inner, f"{prefix}{name}.")
    return names


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _nearest_settings(setting: str) -> str:
    """Name the settings closest to a misspelt one, or those beside it if none is close."""
    names = setting_names()
    if get_close_matches(setting, names):
        return nearest(setting, names)
    group = setting.rpartition(".")[0]
    prefix = f"{group}." if group in names else ""
    return nearest(setting, [name for name in names if name.startswith(prefix) and "." not in name[len(prefix) :]])


def _describe(fault: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails, whose keys vary
    setting = ".".join(str(part) for part in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"{setting} is no setting: {_nearest_settings(setting)}"
    if fault["type"] == "missing":
        return f"{setting} is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "tuple_type":
        message = "input should be a list, such as [1.0, 0.5]"
    if fault["type"] == "value_error":  # raised here as SettingError, which names the setting
        return message
    return f"{setting} = {fault['input']!r}: {message[0].lower()}{message[1:]}"


def _language_faults(values: Mapping[str, Any]) -> list[str]:
    """Check across groups, whether or not the groups themselves are in order."""
    dataset, language = values.get("dataset"), values.get("language")
    if isinstance(dataset, Mapping) and isinstance(language, Mapping):
        name, available = language.get("name"), dataset.get("languages")
        if isinstance(available, list | tuple) and name not in available:
            allowed = f"dataset {dataset.get('name')} has {', '.join(map(str, available))}"
            return [str(SettingError("language.name", name, allowed))]
    return []

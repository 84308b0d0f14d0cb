"""Who judges answers that a truncated model gives, and how much that may cost."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from kvcore.schema.errors import SettingError
from kvcore.schema.fields import Group, Name, PositiveInt
from kvcore.schema.model import ModelSettings

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]


class NoJudge(Group):
    """No answers are generated, none judged."""

    name: Literal["none"]


class _Judge(Group):
    """Which answers are generated, and which of them judged."""

    rubric: Name
    prompts: PositiveInt | None
    max_new_tokens: PositiveInt
    batch_tokens: PositiveInt
    anchor_share: Share
    max_missing: Share


class OpenAIJudge(_Judge):
    """Any endpoint that speaks the protocol of OpenAI's chat completions."""

    name: Literal["openai"]
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    model: Annotated[str, Field(min_length=1)]
    key_variable: str
    structured: Literal["auto", "always", "never"]
    temperature: Annotated[float, Field(ge=0)] | None
    max_reply_tokens: PositiveInt
    max_requests: PositiveInt | None
    concurrent_requests: PositiveInt
    timeout_seconds: Seconds
    retry_seconds: Annotated[float, Field(ge=0)]

    @field_validator("base_url", mode="before")
    @classmethod
    def _holds_no_secret(cls, address: object) -> object:
        """Refuse a user, a password and a query without repeating them: settings are written down."""
        if not isinstance(address, str):
            return address
        if re.search(r"[?#@]", address):
            raise SettingError("judge.base_url", "(not shown)", "an address without user, password, query and anchor")
        return address.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, variable: str) -> str:
        """Refuse what is no name without repeating it: it may be the key itself."""
        if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", variable):
            raise SettingError("judge.key_variable", "(not shown)", "the name of the variable that holds the key")
        return variable


class TransformersJudge(_Judge):
    """A causal language model in the same process."""

    name: Literal["transformers"]
    model: ModelSettings

    @field_validator("model")
    @classmethod
    def _is_asked_in_its_own_template(cls, model: ModelSettings) -> ModelSettings:
        if model.template != "plain":
            allowed = "leave this at plain: a judge is asked in its tokenizer's chat template where it has one"
            raise SettingError("judge.model.template", model.template, allowed)
        return model


JudgeSettings = Annotated[NoJudge | OpenAIJudge | TransformersJudge, Field(discriminator="name")]

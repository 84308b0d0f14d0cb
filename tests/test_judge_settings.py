"""Settings of the judge: what is shipped, and secrets that do not belong there."""

import pytest
from conftest import composed

from kvcore.evaluation.judging.rubric import read_rubric
from kvcore.schema import SettingsError, parse_settings
from kvcore.schema.judge import NoJudge, OpenAIJudge, TransformersJudge

OPENAI = ("judge=openai", "judge.model=a-model")


def test_what_is_shipped() -> None:
    assert isinstance(parse_settings(composed()).judge, NoJudge)
    endpoint = parse_settings(composed(*OPENAI)).judge
    assert isinstance(endpoint, OpenAIJudge)
    assert (endpoint.key_variable, endpoint.temperature, endpoint.structured) == ("OPENAI_API_KEY", 0.0, "auto")
    local = parse_settings(
        composed("judge=transformers", "model@judge.model=gemma3_270m", "judge.model.dtype=bfloat16")
    )
    assert isinstance(local.judge, TransformersJudge)
    assert (local.judge.model.name, local.judge.model.dtype, local.model.name) == (
        "gemma3_270m", "bfloat16", "smollm2_135m",
    )  # fmt: skip
    for settings in (endpoint, local.judge):
        assert read_rubric(settings.rubric).version == "v1"
    assert parse_settings(composed(*OPENAI, "judge.key_variable=''")).judge.key_variable == ""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("judge.key_variable=sk-secret", "judge.key_variable = '(not shown)': the name of the variable"),
        ("judge.base_url=https://user:secret@host/v1", "judge.base_url = '(not shown)': an address without user"),
        ("judge.base_url='https://host/v1?key=secret'", "judge.base_url = '(not shown)': an address without user"),
        ("judge.base_url=host/v1", "judge.base_url = 'host/v1': "),
        ("judge.temperature=-1", "judge.temperature = -1: "),
        ("judge.timeout_seconds=0", "judge.timeout_seconds = 0: "),
        ("judge.max_missing=1.5", "judge.max_missing = 1.5: "),
        ("judge.structured=often", "judge.structured = 'often': "),
        ("judge.rubric=../v1", "judge.rubric = '../v1': "),
    ],
)
def test_what_is_refused(setting: str, line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(composed(*OPENAI, setting))
    assert str(caught.value).startswith(line)
    assert "secret" not in str(caught.value)

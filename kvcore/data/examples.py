"""From rows to examples: a prompt with its response, or a text that stands for itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvcore.data.sources import Row
from kvcore.schema import SettingError


@dataclass(frozen=True)
class Example:
    """One example before tokenization.

    Attributes:
        response: What the model is to answer; the whole text if there is no prompt.
        prompt: What the model is asked; None for a text that is used verbatim.
    """

    response: str
    prompt: str | None = None


def examples_from_rows(
    rows: Sequence[Row],
    *,
    prompt_template: str,
    instruction: str | None = None,
    input: str | None = None,  # noqa: A002 - the name the field gives this column
    output: str | None = None,
    text: str | None = None,
) -> list[Example]:
    """Turn rows into examples; a row without usable strings is left out.

    Args:
        rows: Rows with the same columns.
        prompt_template: The prompt, with {instruction} and {input}; trailing white space is dropped.
        instruction: Name of the column with the instruction.
        input: Name of the column with the instruction's input; a table without it has none.
        output: Name of the column with the response.
        text: Name of the column with running text; it goes before the others.

    Raises:
        SettingError: A mapped column is missing, or no row is usable.
    """
    found = list(rows[0])
    required = {"text": text} if text else {"instruction": instruction, "output": output}
    for role, column in required.items():
        if column is None or column not in found:
            allowed = f"the file's columns are {', '.join(map(repr, found))}"
            raise SettingError(f"dataset.columns.{role}", column, f"{allowed}; map instruction and output, or text")
    examples = []
    for row in rows:
        if not all(_usable(row.get(str(column))) for column in required.values()):
            continue
        if text:
            examples.append(Example(row[text]))
        else:
            optional = row.get(input) if input else None
            prompt = prompt_template.format(
                instruction=row[str(instruction)], input=optional if isinstance(optional, str) else ""
            )
            examples.append(Example(row[str(output)], prompt.rstrip()))
    if not examples:
        columns = ", ".join(f"{role} {column!r}" for role, column in required.items())
        raise SettingError("dataset.columns", columns, "no row has non-empty text in these columns")
    return examples


def _usable(value: Any) -> bool:  # noqa: ANN401 - a cell of a user's table
    return isinstance(value, str) and bool(value.strip())

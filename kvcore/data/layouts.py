"""Rows as published datasets lay them out, turned into rows of an instruction or question and its answer."""

import re
from collections.abc import Callable, Iterator, Sequence

from kvcore.data import Row
from kvcore.schema import SettingError

_TURN = re.compile(r"^(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_END_OF_TURN = "<|endoftext|>"


def flatten(rows: Sequence[Row], layout: str, language: str) -> list[Row]:
    """Return rows whose columns hold text.

    Args:
        rows: Rows as read.
        layout: `rows`: they are so already. `glaive_chat`: conversations, see `_from_glaive_chat`.
            `visr_bench`: documents with questions in many languages, see `_from_visr_bench`.
        language: The language that is wanted, where rows say theirs.

    Raises:
        SettingError: They are not laid out like this, or none is in this language.
    """
    if layout == "rows":
        return list(rows)
    flattened = [flat for row in rows for flat in _LAYOUTS[layout](row)]
    if not flattened:
        found = ", ".join(map(repr, rows[0]))
        raise SettingError("dataset.layout", layout, f"no row is laid out like this; the columns are {found}")
    return _in_language(flattened, language) if layout == "visr_bench" else flattened


def _in_language(rows: Sequence[Row], language: str) -> list[Row]:
    chosen = [row for row in rows if str(row["language"]).lower() == language]
    if not chosen:
        found = ", ".join(sorted({str(row["language"]).lower() for row in rows}))
        raise SettingError("language.name", language, f"no row is in it; there are rows in {found}")
    return chosen


def _from_glaive_chat(row: Row) -> Iterator[Row]:
    """Split a conversation before the last answer.

    Columns: `system` names the functions, `chat` holds turns that begin with USER:, ASSISTANT: or
    FUNCTION RESPONSE: at the start of a line. The answer is the last turn of the assistant; what follows it is
    left out, and so are marks of the end of a turn, which are tokens of another tokenizer.

    Yields:
        `instruction` (the functions), `input` (the turns before), `output` (the answer without its label);
        without an answer, `output` is None.
    """
    system, chat = row.get("system"), row.get("chat")
    if not isinstance(system, str) or not isinstance(chat, str):
        if "system" in row and "chat" in row:
            yield {"instruction": None, "input": None, "output": None}
        return
    chat = chat.replace(_END_OF_TURN, "")
    turns = list(_TURN.finditer(chat))
    answers = [index for index, turn in enumerate(turns) if turn[1] == "ASSISTANT"]
    instruction = re.sub(r"^SYSTEM:\s*", "", system).strip()
    if not answers:
        yield {"instruction": instruction, "input": chat.strip(), "output": None}
        return
    answer = answers[-1]
    end = turns[answer + 1].start() if answer + 1 < len(turns) else len(chat)
    before = re.sub(r"\s*\n\s*\n\s*", "\n", chat[: turns[answer].start()]).strip()
    yield {
        "instruction": instruction,
        "input": f"{before}\nASSISTANT:",
        "output": chat[turns[answer].end() : end].strip(),
    }


def _from_visr_bench(row: Row) -> Iterator[Row]:
    """Take the questions out of a document.

    Two nestings occur: `qa_list[].question`, `.answer`, `.detected_language`, and the older
    `QA.questions[].question_in_detected_language`, `.answer_in_detected_language` with `QA.detected_language`.
    In the older one, some questions are copies of their answers; they are left out, unless they are in English,
    where `question_in_english` holds the question.

    Yields:
        `question`, `answer`, `language`; None where the document has no text.
    """
    for found in row.get("qa_list") or []:
        language = found.get("detected_language") or row.get("detected_language")
        yield {"question": found.get("question"), "answer": found.get("answer"), "language": language}
    older = row.get("QA") or {}
    for found in older.get("questions") or []:
        question, answer = found.get("question_in_detected_language"), found.get("answer_in_detected_language")
        if question == answer:
            question = found.get("question_in_english") if older.get("detected_language") == "English" else None
        yield {"question": question, "answer": answer, "language": older.get("detected_language")}


_LAYOUTS: dict[str, Callable[[Row], Iterator[Row]]] = {
    "glaive_chat": _from_glaive_chat,
    "visr_bench": _from_visr_bench,
}

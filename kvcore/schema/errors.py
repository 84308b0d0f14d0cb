"""What a user can mend, said in clear lines."""

from difflib import get_close_matches


class UserError(ValueError):
    """Something the user can mend: said in clear lines, without a traceback."""


class SettingError(UserError):
    """A user's setting that cannot be used: names the dotted setting, its value and what is allowed."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        """Say that `setting` has a `value` that is not `allowed`."""
        super().__init__(f"{setting} = {value!r}: {allowed}")


class SettingsError(UserError):
    """All faults of one set of settings, a line each."""


class BusyError(RuntimeError):
    """Another process is at work on the same cell."""


class GateError(RuntimeError):
    """A gate failed: the numbers of this run cannot be trusted."""


def nearest(name: str, known: list[str]) -> str:
    """Name the known names closest to a misspelt one, or all of them if none is close."""
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

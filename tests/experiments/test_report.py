"""The page from the command line; tests/results has what is on it."""

from pathlib import Path

from conftest import composed
from scripts import call

from kvcore.grid.frozen import freeze
from kvcore.grid.launching import launched
from kvcore.schema import parse_settings


def test_a_grid_of_which_nothing_is_finished(tmp_path: Path) -> None:
    cells = [parse_settings(composed(f"output_root={tmp_path}", "grid=few", f"seed={seed}")) for seed in range(2)]
    launched(freeze(cells), "missing")
    done = call("report.py", str(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{tmp_path}/report/index.html\n")
    assert "Cannot be told from this grid" in (tmp_path / "report" / "index.html").read_text("utf-8")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, said in [
        (["elsewhere"], "output_root = 'elsewhere': no finished cell under it"),
        ([".", "--detailed-cells=-1"], "--detailed-cells = -1: 0 or more"),
    ]:
        done = call("report.py", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert said in done.stderr

"""The report in a real browser: it opens from disk, sorts, filters, compares, downloads, and fits a phone."""

import io
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from report_example import HOSTILE_DATASET, HOSTILE_MODEL, layer_table, write_example, write_finished
from requirements import require

from kvcore.results.collection import collect, no_cells
from kvcore.results.publication import make_publication
from kvcore.results.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
require("chromium", found=CHROMIUM is not None, reason="no Chromium is installed (Debian: apt-get install chromium)")

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright  # noqa: E402

VIEWS = [
    "overview", "cells", "compare", "layers", "perplexity", "scores", "cost", "budgets", "transfer", "definitions",
    "cell?id=a1",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    write_example(root)
    return root


class Opened:
    """A page, and all that it said or asked for."""

    def __init__(self, page: Page) -> None:  # noqa: D107
        self.page = page
        self.said: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self.said.append(request.url))

    def open(self, path: Path, view: str = "") -> Page:
        self.page.goto(f"{path.as_uri()}#{view}")
        self.page.locator("html[data-ready]").wait_for()
        self.said = [text for text in self.said if not text.startswith((path.as_uri(), "blob:null/"))]
        return self.page


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    opened = Opened(context.new_page())
    yield opened
    assert opened.said == []
    context.close()


@pytest.fixture(scope="module")
def kept_open(browser: Browser, outputs: Path) -> Opened:
    opened = Opened(browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light"))
    opened.open(outputs / "report" / "index.html")
    return opened


@pytest.fixture
def page(kept_open: Opened) -> Iterator[Page]:
    """The example's page, opened once: reading and running its 5 MB of libraries takes seconds."""
    go(kept_open.page, "overview")
    yield kept_open.page
    said, kept_open.said = kept_open.said, []
    assert [text for text in said if not text.startswith("blob:null/")] == []  # downloads


def go(page: Page, view: str) -> None:
    page.evaluate("view => { location.hash = view }", view)
    expect(page.locator(f'[data-view="{view.partition("?")[0]}"]')).to_be_visible()


def rows(page: Page) -> Locator:
    return page.locator("#cells-table tbody tr")


def column(page: Page, place: int) -> list[str]:
    return [row.locator("td").nth(place).inner_text() for row in rows(page).all()]


def downloaded(page: Page, button: Locator) -> pd.DataFrame:
    with page.expect_download() as download:
        button.click()
    return pd.read_csv(io.BytesIO(Path(download.value.path()).read_bytes()))


def test_every_view_opens_without_errors_or_requests(page: Page) -> None:
    for view in VIEWS:
        go(page, view)
        expect(page.locator("section:visible h2")).to_have_count(1)
    names = page.locator(".modebar-btn").evaluate_all("all => all.map(one => one.getAttribute('aria-label') || '')")
    assert not [name for name in names if "hare" in name]  # no button uploads


def test_the_table_of_cells_sorts_and_filters(page: Page) -> None:
    go(page, "cells")
    assert rows(page).count() == 8
    page.locator("#cells-table th", has_text="NER, keys").first.click()
    numbers = [text for text in column(page, 6) if text[0] == "0"]
    assert numbers == ["0.2000†", "0.2500", "0.3000", "0.3500", "0.4000*"]
    page.locator("#cells-table input[type=search]").first.fill("gamma")
    expect(rows(page)).to_have_count(2)
    assert column(page, 3) == ["gamma", "gamma"]
    go(page, "cells?state=failed")
    assert column(page, 1) == ["failed"]


def test_two_chosen_cells_are_compared_and_the_way_back_leads_back(page: Page) -> None:
    go(page, "cells")
    button = page.locator("#compare-chosen")
    for name in ("alpha", "beta"):
        expect(button).to_be_disabled()
        rows(page).filter(has_text=name).locator("input[type=checkbox]").click()
    button.click()
    assert page.evaluate("location.hash") == "#compare?a=a1&b=b2"
    view = page.locator('[data-view="compare"]')
    expect(view.locator("tr", has_text="NER, keys")).to_contain_text("0.3000\t0.2000\t-0.1000", use_inner_text=True)
    expect(view.locator(".notice")).to_have_text("B: † Untrusted, failed gates: tail energy.")
    assert view.locator(".js-plotly-plot").count() == 2
    settings = view.locator("table", has=page.locator("caption", has_text="Settings that differ")).inner_text()
    assert "dataset.name\talpha\tbeta" in settings
    page.go_back()
    expect(page.locator('[data-view="cells"]')).to_be_visible()


def test_downloads_hold_the_numbers_of_the_files(page: Page, outputs: Path) -> None:
    go(page, "cell?id=a1")
    found = downloaded(page, page.locator("figure", has_text="NER over layers").get_by_text("Download CSV"))
    pd.testing.assert_frame_equal(found, layer_table(0.3), check_dtype=False, check_exact=True)
    go(page, "cells")
    table = downloaded(page, page.locator('[data-view="cells"] [data-download="cells"]')).set_index("id")
    cells = collect(outputs).cells.set_index("id")
    numbers = ["ner_key", "ner_value", "grid_mean_nd_ppl", "grid_mean_nd_ppl_low", "tokens_per_dim", "perplexity"]
    pd.testing.assert_frame_equal(table.loc[cells.index, numbers], cells[numbers], check_dtype=False, check_exact=True)
    assert table.loc["e5", "model"] == HOSTILE_MODEL


def test_what_is_missing_failed_or_doubtful_is_marked(page: Page) -> None:
    overview = page.locator('[data-view="overview"]').inner_text()
    for said in ("1\nuntrusted", "1\nfailed", "1\nnot converged*", "runs/odd/record.json", "no <b>room</b>", "0.2000†"):
        assert said in overview
    assert "0.4000*" in overview
    go(page, "cell?id=" + str(page.evaluate("cells.find(cell => cell.state === 'failed').id")))
    expect(page.locator(".notice.bad")).to_have_text("Failed while capture: no <b>room</b>")
    expect(page.locator("pre:visible")).to_have_text("Traceback: no room")
    go(page, "layers?model=small&lines=dataset:gamma")
    names = page.evaluate("document.querySelector('figure .figure').data.map(trace => trace.name)")
    assert set(names) == {"english", "german*"}


def test_names_stay_text(page: Page) -> None:
    for view in ("overview", "cells", "cell?id=e5", "compare?a=e5&b=a1", "perplexity?id=e5", "cost"):
        go(page, view)
        expect(page.locator("section:visible")).to_contain_text(HOSTILE_MODEL)
        assert page.locator("img[src=x]").count() == 0
    expect(page.locator("section:visible")).not_to_contain_text("undefined")
    go(page, "cell?id=e5")
    expect(page.locator("section:visible h2")).to_contain_text(HOSTILE_DATASET)


def test_figures_show_what_was_measured(page: Page) -> None:
    def drawn() -> dict[str, list[list[float]]]:
        return dict(page.evaluate("document.querySelector('section:not([hidden]) .js-plotly-plot').data[0]"))

    go(page, "scores")
    assert drawn()["z"] == [[8.5, None], [4.25, 1.0]]
    go(page, "perplexity?id=a1&measure=delta_nll")
    assert drawn()["z"] == [[0, None], [0.75, 1.5]]
    go(page, "transfer")
    expect(page.locator("section:visible .notice")).to_contain_text("Not in this grid: no finished cell was evaluated")


def test_everything_can_be_reached_by_keyboard(opened: Opened, outputs: Path) -> None:
    page = opened.open(outputs / "report" / "index.html")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.locator('nav a[href="#cells"]').focus()
    page.keyboard.press("Enter")
    expect(page.locator('[data-view="cells"] h2')).to_be_focused()
    for _ in range(40):  # to the first heading that sorts
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('th')?.textContent.includes('State')"):
            break
    page.keyboard.press("Enter")
    states = column(page, 1)
    assert states == sorted(states)
    page.locator('[data-view="cells"] .term').first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#about-state")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#about-state")).to_be_hidden()


@pytest.mark.parametrize("width", [360, 1920])
def test_nothing_overflows_sideways(opened: Opened, outputs: Path, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 740})
    page = opened.open(outputs / "report" / "index.html")
    for view in [*VIEWS, "compare?a=a1&b=e5", "cell?id=e5"]:
        go(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_colours_follow_the_system_and_the_switch(opened: Opened, outputs: Path) -> None:
    opened.page.emulate_media(color_scheme="dark")
    page = opened.open(outputs / "report" / "index.html", "cell?id=a1")

    def colours() -> list[str]:
        return list(
            page.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " document.querySelector('.js-plotly-plot').layout.font.color]"
            )
        )

    assert colours() == ["rgb(20, 23, 27)", "#e8e9eb"]
    page.locator("#theme").select_option("light")
    assert colours() == ["rgb(253, 253, 251)", "#1b1f24"]
    page.reload()
    page.locator("html[data-ready]").wait_for()
    opened.said.clear()
    assert colours() == ["rgb(253, 253, 251)", "#1b1f24"]


def test_what_is_not_finite_breaks_no_view(opened: Opened, tmp_path: Path) -> None:
    for index, cost in enumerate((math.inf, 60.0, 70.0)):
        elsewhere = {"evaluated_on": "d1", "converged": False} if index == 2 else {}
        perplexity = {"baseline": 7.5, "grid_mean_nd_ppl": cost}
        ner = 0.2 + index / 10
        path = write_finished(
            tmp_path, "m", f"d{index}", "english", f"a{index}", ner, perplexity=perplexity, **elsewhere
        )
        points = pd.read_parquet(path.with_name("perplexity.parquet"))
        points["delta_nll"] = points["delta_nll"].where(points["point"] != 1, [math.inf, math.nan, math.inf][index])
        points.to_parquet(path.with_name("perplexity.parquet"))
    page = opened.open(write_report(make_publication(collect(tmp_path)), tmp_path / "index.html").path)
    go(page, "transfer")
    plot = "document.querySelector('section:not([hidden]) .js-plotly-plot')"
    assert page.evaluate(f"{plot}.data[0].y") == ["d0", "d1", "d2*"]
    framed = page.evaluate(f"{plot}.layout.shapes.map((shape) => [shape.x0 + shape.x1, shape.y0 + shape.y1])")
    assert framed == [[0, 0], [2, 2], [4, 4]]
    for view in ("compare?a=a0&b=a1", "cost"):
        go(page, view)
        expect(page.locator("section:visible .js-plotly-plot").first).to_be_visible()
    shown = page.evaluate("document.querySelector('section:not([hidden]) .js-plotly-plot').layout.yaxis.range")
    assert shown[0] < 60 < shown[1] < 70
    go(page, "compare?a=a0&b=a1")
    text = page.evaluate("document.querySelectorAll('section:not([hidden]) .js-plotly-plot')[1].data[0].text")
    assert text == [["0.000", ""], ["\u2013", "0.000"]]


def test_numbers_of_a_matrix_fit_where_the_screen_is_narrower(opened: Opened, outputs: Path) -> None:
    opened.page.set_viewport_size({"width": 150, "height": 740})
    page = opened.open(outputs / "report" / "index.html", "perplexity?id=a1")
    width = page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout.xaxis._length / 2")
    assert width > 40  # pixels of a column; four digits take about 30


def test_an_empty_grid_says_so(opened: Opened, tmp_path: Path) -> None:
    written = write_report(make_publication(no_cells()), tmp_path / "index.html")
    page = opened.open(written.path)
    expect(page.locator(".notice:visible")).to_contain_text("No cell has been begun or finished here")
    for view in VIEWS:
        go(page, view)

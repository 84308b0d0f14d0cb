// Which view is shown: the address says so, as in #compare?a=ID&b=ID.

let focusAfter = null;
const VIEWS = {
  overview: showOverview, cells: showCells, compare: showCompare, layers: showLayers, perplexity: showPerplexity, scores: showScores,
  cost: showCost, budgets: showBudgets, transfer: showTransfer, cell: showCell, definitions: () => {},
};
const TITLE = document.title;

function showOverview() {
  showPublished();
  for (const node of document.querySelectorAll("table.enhanced")) {
    if (!DataTable.isDataTable(node)) dataTable(node, node.tBodies[0].rows.length, { paging: node.tBodies[0].rows.length > 100 });
  }
}

function showCells(_, filters) {
  const parent = document.getElementById("cells-table");
  const button = document.getElementById("compare-chosen");
  const table = cellsTable(parent, filters);
  const picked = () => table.rows({ selected: true }).data().toArray().filter((cell) => cell.spectrum_id !== null);
  const update = () => { button.disabled = picked().length !== 2; };
  table.on("select deselect", update);
  update();
  button.onclick = () => { const [a, b] = picked(); location.hash = address("compare", { a: a.id, b: b.id }); };
  if (Object.keys(filters).length) {
    const said = Object.entries(filters).map(([name, value]) => `${name} ${value}`).join(", ");
    parent.prepend(make("p", { class: "notice" }, `Only cells with ${said}. `, make("a", { href: "#cells" }, "Show all")));
  }
}

function show(isFirst = false) {
  const [asked, query] = location.hash.slice(1).split("?");
  const name = Object.hasOwn(VIEWS, asked) ? asked : "overview";
  for (const node of document.querySelectorAll(".js-plotly-plot")) Plotly.purge(node);
  document.getElementById("published-figure")?.replaceChildren();
  for (const node of document.querySelectorAll("[data-view]")) node.hidden = node.dataset.view !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const node of document.querySelectorAll("[data-view] > .body")) node.replaceChildren();
  const view = document.querySelector(`[data-view="${name}"]`), body = view.querySelector(".body");
  VIEWS[name](body, Object.fromEntries(new URLSearchParams(query ?? "")));
  document.title = `${view.querySelector("h2").textContent} – ${TITLE}`;
  const control = focusAfter && view.querySelector(`[name="${focusAfter}"]`);
  focusAfter = null;
  if (control) control.focus();
  else if (!isFirst) { window.scrollTo(0, 0); view.querySelector("h2").focus({ preventScroll: true }); }
}

function remembered(theme) { // some browsers keep nothing for pages on disk
  try {
    if (theme) localStorage.setItem("kvcore-colours", theme);
    return localStorage.getItem("kvcore-colours") ?? "auto";
  } catch {
    return theme ?? "auto";
  }
}

const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");
const theme = document.getElementById("theme");

function colour() {
  document.documentElement.dataset.theme = theme.value === "auto" ? (systemIsDark.matches ? "dark" : "light") : theme.value;
}

function redraw() {
  const top = window.scrollY;
  show(true);
  window.scrollTo(0, top);
}

theme.value = remembered();
colour();
theme.addEventListener("change", () => { remembered(theme.value); colour(); redraw(); });
systemIsDark.addEventListener("change", () => { colour(); redraw(); });
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); document.getElementById("content").focus(); });
document.addEventListener("click", (event) => {
  const table = event.target.dataset?.download;
  if (table) download(`${table}.csv`, csvOf(page.tables[table]));
});
loadTables().then(() => {
  show(true);
  window.addEventListener("hashchange", () => show());
  window.matchMedia("(max-width: 48rem)").addEventListener("change", redraw);
  document.documentElement.dataset.ready = "yes";
});

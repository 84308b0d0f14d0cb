// DataTables, loaded from the page itself.

let DataTable;

async function loadTables() {
  const source = JSON.parse(document.getElementById("table-library").textContent);
  const location = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const library = await import(location);
  URL.revokeObjectURL(location);
  DataTable = library.default;
  DataTable.ext.errMode = "throw";
  library.set_or_remove_dark_class(); // follows data-theme of the document from here on
}

function dataTable(node, count, options = {}) {
  const paged = count > 50;
  const table = new DataTable(node, {
    paging: paged, pageLength: 50, lengthMenu: [50, 200, 1000], autoWidth: false, order: [],
    layout: {
      topStart: count > 7 ? "search" : null, topEnd: paged ? "pageLength" : null,
      bottomStart: count > 7 ? "info" : null, bottomEnd: paged ? "paging" : null,
    },
    language: { search: "Search", info: "_TOTAL_ rows", infoFiltered: "of _MAX_", infoEmpty: "no rows", zeroRecords: "No row matches." },
    ...options,
  });
  const scroller = node.closest(".dt-layout-table");
  scroller.tabIndex = 0;
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", node.getAttribute("aria-label") ?? "Table");
  return table;
}

function column(name, title, more = {}) {
  const definition = page.definitions[name];
  return {
    data: name, name, title: title ?? definition?.label ?? name.replaceAll("_", " "), defaultContent: "",
    className: more.numeric ? "dt-right" : "dt-left",
    render: (value, type) => {
      if (type === "sort" || type === "type") return finite(value) ?? (more.numeric ? null : "");
      return type === "display" ? make("span", { title: value }, shown(value, name)) : value ?? "";
    },
    ...more,
  };
}

function tableOfRows(rows, label) {
  const names = Object.keys(rows[0] ?? {});
  const node = make("table", { class: "compact", "aria-label": label });
  const holder = make("div", {}, node);
  const isNumeric = (name) => rows.some((row) => typeof row[name] === "number");
  const columns = names.map((name) => column(name, null, { numeric: isNumeric(name) }));
  queueMicrotask(() => dataTable(node, rows.length, { data: rows, columns }));
  return holder;
}

// The data behind a view: a table that is made when it is opened, and a download.
function dataBelow(rows, file) {
  const details = make("details", { class: "data" }, make("summary", {}, "Data as a table"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(tableOfRows(rows, file));
  });
  return make("div", { class: "below" }, details, downloadButton("Download CSV", `${file}.csv`, () => csvOf(columnsOf(rows))));
}

function nerCell(node, value) {
  if (typeof value !== "number") return;
  node.classList.add("ner");
  node.style.setProperty("--ner", value);
}

function cellsTable(parent, filters) {
  const has = (name) => cells.some((cell) => cell[name] !== null && cell[name] !== undefined);
  const elsewhere = cells.some((cell) => cell.evaluated_on && cell.evaluated_on !== cell.dataset);
  const text = (name, title) => column(name, title, { columnControl: [{ target: 1, content: [["searchList"]] }] });
  const number = (name, more = {}) => column(name, null, { numeric: true, searchable: true, ...more });
  const ner = (name) => number(name, {
    createdCell: nerCell,
    render: (value, type, row) => (type !== "display" ? value : value === null ? "–"
      : make("span", { title: value }, value.toFixed(4) + marksOf(row))),
  });
  const columns = [
    { data: null, title: "Choose", orderable: false, className: "select", render: DataTable.render.select(), columnControl: [{ target: 1, content: [] }] },
    { ...text("state", "State"), render: (value, type) => (type === "display" ? badge(value) : value) },
    { ...text("model", "Model"), render: (value, type, row) => (type === "display" ? make("a", { href: address("cell", { id: row.id }) }, value) : value) },
    text("dataset", "Dataset"), text("language", "Language"),
    ...(elsewhere ? [text("evaluated_on", "Evaluated on")] : []),
    text("rank_budget", "Rank budget"), ner("ner_key"), ner("ner_value"), number("tokens_per_dim", { title: "Tokens per dim." }),
    number("perplexity"), number("grid_mean_nd_ppl"), ...(has("grid_mean_score") ? [number("grid_mean_score")] : []),
    column("id", "ID", { render: (value, type) => (type === "display" ? make("code", {}, value) : value) }),
  ];
  const heads = columns.map(() => make("th", { scope: "col" })); // else ColumnControl makes headings that are none
  const node = make("table", { class: "compact", "aria-label": "All cells" }, make("thead", {}, make("tr", {}, heads)));
  parent.replaceChildren(node);
  const rows = cells.filter((cell) => Object.entries(filters).every(([name, value]) => String(cell[name]) === value));
  const table = dataTable(node, rows.length, {
    data: rows, columns, select: { style: "multi", selector: "td.select", headerCheckbox: false }, order: [[2, "asc"]], deferRender: true,
    columnControl: [{ target: 1, content: ["search"] }],
  });
  return table;
}

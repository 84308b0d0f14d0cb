// The page's data: tables by column, one script element for each cell; numbers are as in the files.

const page = JSON.parse(document.getElementById("data").textContent);
const KINDS = ["key", "value"];

function rowsOf(table) {
  if (!table) return [];
  const names = Object.keys(table);
  const count = names.length ? table[names[0]].length : 0;
  return Array.from({ length: count }, (_, index) => Object.fromEntries(names.map((name) => [name, table[name][index]])));
}

const cells = rowsOf(page.tables.cells);
const cellById = new Map(cells.map((cell) => [cell.id, cell]));
const detailCache = new Map();

function detailOf(id) {
  if (!detailCache.has(id)) {
    const node = document.getElementById(`cell-${id}`);
    detailCache.set(id, node ? JSON.parse(node.textContent) : {});
  }
  return detailCache.get(id);
}

const tableOf = (id, name) => rowsOf(detailOf(id).tables?.[name]);

function nameOf(cell) {
  const on = cell.evaluated_on && (cell.evaluated_on !== cell.dataset || cell.evaluated_language !== cell.language)
    ? ` → ${cell.evaluated_on}, ${cell.evaluated_language}` : "";
  return `${cell.model} · ${cell.dataset}, ${cell.language}${on} · ${cell.rank_budget}${marksOf(cell)}`;
}

const marksOf = (cell) => (cell.converged === false ? "*" : "") + (cell.state === "untrusted" ? "†" : "");

function finite(value) { // numbers that JSON cannot carry come as words
  return { NaN, Infinity, "-Infinity": -Infinity }[value] ?? value;
}

function shown(value, name = "") {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof finite(value) !== "number") return String(value);
  const number = finite(value);
  if (!Number.isFinite(number)) return String(number).replace("Infinity", "∞");
  if (/^(ner|share|pearson|kept|cost_ratio|difference)/.test(name)) return number.toFixed(4);
  if (Number.isInteger(number)) return number.toLocaleString("en-US");
  return Math.abs(number) >= 1e5 || Math.abs(number) < 1e-3 ? number.toExponential(2) : number.toPrecision(4);
}

function csvOf(table) {
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const names = Object.keys(table);
  const lines = rowsOf(table).map((row) => names.map((name) => quoted(row[name])).join(","));
  return [names.map(quoted).join(","), ...lines].join("\n") + "\n";
}

function columnsOf(rows) {
  return Object.fromEntries(Object.keys(rows[0] ?? {}).map((name) => [name, rows.map((row) => row[name])]));
}

function download(name, text, type = "text/csv") {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function downloadButton(label, name, text, type) {
  return make("button", { type: "button", class: "download", onclick: () => download(name, text(), type) }, label);
}

// Elements are made of text, never of markup: a name from a record cannot become a part of the page.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const address = (view, parameters = {}) => `#${view}?${new URLSearchParams(parameters)}`;

function badge(state) {
  return make("span", { class: `state ${state}` }, state);
}

function unique(values) {
  return [...new Set(values)];
}

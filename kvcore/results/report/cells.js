// One cell, and two side by side.

function flat(value, prefix = "") {
  if (value === null || typeof value !== "object") return [[prefix, value]];
  if (Array.isArray(value) && value.every((item) => item === null || typeof item !== "object")) return [[prefix, value.join(", ")]];
  return Object.entries(value).flatMap(([name, item]) => flat(item, prefix ? `${prefix}.${name}` : name));
}

function plainTable(heads, rows, label) {
  const head = make("tr", {}, heads.map((text) => make("th", { scope: "col" }, text)));
  const lines = rows.map((row) => make("tr", {}, row.map((item, index) =>
    make(index ? "td" : "th", index ? {} : { scope: "row" }, item instanceof Node ? item : shown(item)))));
  const table = make("table", { class: "plain-table" }, make("caption", {}, label), make("thead", {}, head), make("tbody", {}, lines));
  return make("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": label }, table);
}

const section = (title, ...content) => [make("h3", {}, title), ...content];

function numbersOf(cell) {
  const range = (name) => (cell[`${name}_low`] === null ? "" : ` (${shown(cell[`${name}_low`])} to ${shown(cell[`${name}_high`])})`);
  return [
    ["NER, keys", cell.ner_key, shown(cell.ner_key, "ner")], ["NER, values", cell.ner_value, shown(cell.ner_value, "ner")],
    ["Tokens", cell.tokens, shown(cell.tokens)], ["Tokens per dimension", cell.tokens_per_dim, shown(cell.tokens_per_dim)],
    ["Perplexity, untruncated", cell.perplexity, shown(cell.perplexity) + range("perplexity")],
    ["Mean ND-PPL", cell.grid_mean_nd_ppl, shown(cell.grid_mean_nd_ppl) + range("grid_mean_nd_ppl")],
    ["Mean GPT-score", cell.grid_mean_score, shown(cell.grid_mean_score) + range("grid_mean_score")],
  ].filter(([, value]) => value !== null && value !== undefined);
}

function warningsOf(cell) {
  return [
    cell.state === "untrusted" ? make("p", { class: "notice bad" }, `† Untrusted, ${cell.reason.replaceAll("_", " ")}.`) : null,
    cell.converged === false ? make("p", { class: "notice" }, `* Not converged: ${shown(cell.tokens_per_dim)} tokens per dimension, fewer than 20; NER may still rise.`) : null,
  ].filter(Boolean);
}

function compareChoice(cell) {
  const others = measured().filter((other) => other.id !== cell.id);
  if (!others.length || cell.spectrum_id === null) return null;
  const options = [["", "choose a cell"], ...others.map((other) => [other.id, nameOf(other)])];
  const label = select("Compare with", "with", options, "");
  label.addEventListener("change", (event) => { location.hash = address("compare", { a: cell.id, b: event.target.value }); });
  return make("div", { class: "controls" }, label);
}

function showCell(body, { id }) {
  const cell = cellById.get(id);
  if (!cell) return body.append(nothing(`cell ${id ?? ""} (choose one in the table of cells)`));
  const detail = detailOf(id), { record } = detail;
  body.parentElement.querySelector("h2").textContent = nameOf(cell);
  body.append(make("p", {}, badge(cell.state), " ", make("code", {}, cell.id), cell.grid ? ` of ${cell.grid}` : "", ...(cell.folder ? [" in ", make("code", {}, cell.folder)] : [])), ...warningsOf(cell));
  if (cell.spectrum_id === null) return body.append(...unfinished(cell, detail.failure));
  body.append(make("dl", { class: "numbers key" }, numbersOf(cell).map(([name, value, text]) => make("div", {}, make("dt", {}, name), make("dd", { title: value }, text)))));
  const comparing = compareChoice(cell);
  if (comparing) body.append(comparing);
  if (!record) return body.append(quiet("The record, tables and figures of this cell are left out of this page; they are in its folder."));
  if (detail.unreadable) body.append(make("p", { class: "notice bad" }, detail.unreadable));
  cellFigures(body, cell);
  const gates = Object.entries(record.gates ?? {}).map(([name, gate]) => [name.replaceAll("_", " "), gate.passed ? "✓ passed" : "✕ failed", gate.value, gate.limit]);
  body.append(...section("Gates", plainTable(["Gate", "Outcome", "Value", "Limit"], gates, "Gates of this cell")));
  for (const [title, value] of [["Settings", record.settings], ["Splits", record.splits], ["Judging", record.judged], ["Made with", { device: record.device, git_commit: record.git_commit, peak_memory_bytes: record.peak_memory_bytes, seconds: record.seconds, ...record.versions }]]) {
    if (value) body.append(make("details", {}, make("summary", {}, title), plainTable(["Name", "Value"], flat(value), title)));
  }
  body.append(make("p", {}, downloadButton("Download the record (JSON)", `record-${id}.json`, () => JSON.stringify(record, null, 2), "application/json")));
}

function unfinished(cell, failure) {
  if (!failure) return [make("p", { class: "notice" }, cell.reason || "Not finished; nothing more is known.")];
  return [
    make("p", { class: "notice bad" }, `Failed while ${failure.stage ?? "running"}: ${failure.error ?? cell.reason ?? ""}`),
    ...section("Traceback", make("pre", { tabindex: "0" }, failure.traceback ?? "")),
    make("details", {}, make("summary", {}, "Settings"), plainTable(["Name", "Value"], flat(failure.settings ?? {}), "Settings")),
    make("p", {}, downloadButton("Download the failure (JSON)", `failure-${cell.id}.json`, () => JSON.stringify(failure, null, 2), "application/json")),
  ];
}

function cellFigures(body, cell) {
  const layers = tableOf(cell.id, "layers"), convergence = tableOf(cell.id, "convergence");
  const points = tableOf(cell.id, "perplexity"), scores = tableOf(cell.id, "scores");
  if (layers.length) {
    body.append(...section("NER over layers"));
    figure(body, "NER over layers; open markers: not converged", (node, text) => linesOverLayers(node, [{ name: cell.model, rows: layers }], text), layers, `layers-${cell.id}`);
  }
  if (convergence.length) {
    body.append(...section("Convergence"));
    figure(body, "NER against tokens seen; a line for each layer, blue: first, orange: last", (node, text) => convergenceLines(node, convergence, text), convergence, `convergence-${cell.id}`);
  }
  if (points.length) body.append(...section("Cost of truncation"));
  if (points.some((row) => row.strategy === "grid")) perplexitySurface(body, cell);
  else if (points.length > 1) {
    const rows = points.filter((row) => row.strategy !== "none" && row.budget !== null);
    figure(body, "Delta NLL at each budget; bars: 95 % over examples", (node, text) => budgetLines(node, rows, "delta_nll", "Delta NLL (nats per token)", text), points, `perplexity-${cell.id}`);
  }
  if (scores.some((row) => row.key_ratio !== null)) {
    body.append(...section("Judged answers"));
    scoreSurface(body, cell);
  }
}

function showCompare(body, parameters) {
  const options = measured().map((cell) => [cell.id, nameOf(cell)]);
  if (options.length < 2) return body.append(nothing("fewer than two cells are finished"));
  const a = chosen(parameters, "a", options), b = chosen(parameters, "b", options.filter(([id]) => id !== a));
  body.append(controls("compare", { a, b }, select("A", "a", options, a), select("B", "b", options, b)));
  const pair = [cellById.get(a), cellById.get(b)];
  for (const [index, cell] of pair.entries()) body.append(...warningsOf(cell).map((node) => (node.prepend(`${"AB"[index]}: `), node)));
  const [first, second] = pair.map((cell) => new Map(numbersOf(cell).map(([name, value, text]) => [name, { value, text }])));
  const rows = unique([...first.keys(), ...second.keys()]).map((name) => {
    const one = first.get(name), other = second.get(name);
    return [name, one?.text ?? "–", other?.text ?? "–", one && other ? shown(other.value - one.value, name.startsWith("NER") ? "ner" : "") : "–"];
  });
  const heads = pair.map((cell, index) => make("a", { href: address("cell", { id: cell.id }) }, `${"AB"[index]}: ${nameOf(cell)}`));
  body.append(plainTable(["", ...heads, "B − A"], rows, "Numbers, with 95 % intervals"));
  comparedLayers(body, pair);
  comparedSurfaces(body, pair);
  comparedSettings(body, pair);
}

function comparedLayers(body, pair) {
  const tables = pair.map((cell) => tableOf(cell.id, "layers"));
  if (!tables.every((rows) => rows.length)) return body.append(quiet("One of them has no layers on this page."));
  const series = tables.map((rows, index) => ({ name: `${"AB"[index]}${marksOf(pair[index])}`, rows }));
  const both = tables.flatMap((rows, index) => rows.map((row) => ({ cell: "AB"[index], id: pair[index].id, ...row })));
  body.append(...section("NER over layers"));
  figure(body, "NER over layers of A and B; open markers: not converged", (node, text) => linesOverLayers(node, series, text), both, `layers-${pair[0].id}-${pair[1].id}`);
}

function comparedSurfaces(body, pair) {
  const [one, other] = pair.map((cell) => new Map(tableOf(cell.id, "perplexity").filter((row) => row.key_ratio !== null).map((row) => [`${row.key_ratio} ${row.value_ratio}`, row])));
  const rows = [...one].filter(([place]) => other.has(place)).map(([place, row]) => {
    const a = finite(row.delta_nll), b = finite(other.get(place).delta_nll);
    return { key_ratio: row.key_ratio, value_ratio: row.value_ratio, a, b, difference: a === null || b === null ? null : b - a };
  });
  if (rows.length < 2) return;
  const most = Math.max(...rows.map((row) => Math.abs(row.difference)).filter(Number.isFinite)) || 1;
  body.append(...section("Cost of truncation"));
  figure(body, "Delta NLL of B minus that of A (nats per token) over rank ratios", (node, text) => ratioHeatmap(node, rows, "difference", "B − A (nats per token)", text,
    (row) => row.difference?.toFixed(3) ?? "–", { range: [-most, most], scale: "RdBu", reversed: false }), rows, `delta_nll-${pair[0].id}-${pair[1].id}`);
}

function comparedSettings(body, pair) {
  const [one, other] = pair.map((cell) => new Map(flat(detailOf(cell.id).record?.settings ?? {})));
  const names = unique([...one.keys(), ...other.keys()]);
  const differs = (name) => shown(one.get(name)) !== shown(other.get(name));
  const row = (name) => [name, one.get(name), other.get(name)];
  body.append(...section("Settings that differ", plainTable(["Setting", "A", "B"], names.filter(differs).map(row), "Settings that differ")),
    make("details", {}, make("summary", {}, "Settings that are the same"), plainTable(["Setting", "A", "B"], names.filter((name) => !differs(name)).map(row), "Settings that are the same")));
}

// Views over many cells.

function select(label, name, options, value) {
  const items = options.map(([key, text]) => make("option", { value: key, selected: key === value }, text));
  return make("label", {}, label, make("select", { name }, items));
}

// Selects whose choice goes into the address, so that it can be linked and gone back from.
function controls(view, parameters, ...selects) {
  const form = make("form", { class: "controls", onsubmit: (event) => event.preventDefault() }, selects);
  form.addEventListener("change", (event) => {
    location.hash = address(view, { ...parameters, ...Object.fromEntries(new FormData(form)) });
    focusAfter = event.target.name;
  });
  return form;
}

const chosen = (parameters, name, options) => (options.some(([key]) => key === parameters[name]) ? parameters[name] : options[0]?.[0]);
const asOptions = (values) => values.map((value) => [value, value]);
const nothing = (reason) => make("p", { class: "notice" }, `Not in this grid: ${reason}.`);
const quiet = (...text) => make("p", { class: "quiet" }, ...text);
const measured = () => cells.filter((cell) => cell.spectrum_id !== null);

function once(list) { // cells that share a spectrum have the same lines
  const seen = new Set();
  return list.filter((cell) => !seen.has(cell.spectrum_id) && seen.add(cell.spectrum_id));
}

function showLayers(body, parameters) {
  const finished = measured();
  if (!finished.length) return body.append(nothing("no cell is finished"));
  const models = asOptions(unique(finished.map((cell) => cell.model)));
  const model = chosen(parameters, "model", models);
  const own = finished.filter((cell) => cell.model === model);
  const groups = [
    ...unique(own.map((cell) => cell.language)).map((name) => ({ key: `language:${name}`, text: `datasets in ${name}`, lines: own.filter((cell) => cell.language === name), label: "dataset" })),
    ...unique(own.map((cell) => cell.dataset)).map((name) => ({ key: `dataset:${name}`, text: `languages of ${name}`, lines: own.filter((cell) => cell.dataset === name), label: "language" })),
  ].map((group) => ({ ...group, lines: once(group.lines) })).filter((group, _, all) => group.lines.length > 1 || all.every((other) => other.lines.length < 2));
  groups.sort((one, other) => (one.label === other.label ? other.lines.length - one.lines.length : one.label < other.label ? -1 : 1));
  const lines = chosen(parameters, "lines", groups.map((group) => [group.key]));
  const group = groups.find((one) => one.key === lines);
  body.append(controls("layers", { model, lines }, select("Model", "model", models, model), select("Lines", "lines", groups.map((one) => [one.key, one.text]), lines)));
  const drawn = group.lines.filter((cell) => tableOf(cell.id, "layers").length);
  if (drawn.length < group.lines.length) body.append(quiet(`${group.lines.length - drawn.length} of ${group.lines.length} cells have no layers on this page.`));
  const labels = drawn.map((cell) => cell[group.label]);
  const series = drawn.map((cell, index) => ({
    name: (labels.indexOf(labels[index]) === labels.lastIndexOf(labels[index]) ? labels[index] : `${labels[index]} (${cell.spectrum_id})`) + marksOf(cell),
    rows: tableOf(cell.id, "layers"),
  }));
  const rows = drawn.flatMap((cell) => tableOf(cell.id, "layers").map((row) => ({ model, dataset: cell.dataset, language: cell.language, id: cell.id, ...row })));
  figure(body, `NER of ${model} over layers, ${group.text}`, (node, text) => linesOverLayers(node, series, text), rows, "layers");
  body.append(quiet("Open markers and *: not converged. Click a name to hide its line, twice to see it alone; drag to zoom, click twice to zoom out."));
}

const POINT_MEASURES = [["delta_nll", "Delta NLL (nats per token)"], ["nd_ppl", "ND-PPL"], ["perplexity", "Perplexity"], ["bits_per_byte", "Bits per byte"]];

function chooseCell(body, view, parameters, candidates, ...selects) {
  const options = candidates.map((cell) => [cell.id, nameOf(cell)]);
  const id = chosen(parameters, "id", options);
  body.append(controls(view, { ...parameters, id }, select("Cell", "id", options, id), ...selects));
  return cellById.get(id);
}

function showPerplexity(body, parameters) {
  const candidates = measured().filter((cell) => cell.rank_budget === "grid" && tableOf(cell.id, "perplexity").length);
  if (!candidates.length) return body.append(nothing("no finished cell has rank_budget=grid"));
  const measure = chosen(parameters, "measure", POINT_MEASURES);
  const cell = chooseCell(body, "perplexity", { ...parameters, measure }, candidates, select("Colour and numbers", "measure", POINT_MEASURES, measure));
  perplexitySurface(body, cell, measure);
  body.append(make("p", {}, make("a", { href: address("cell", { id: cell.id }) }, "Open this cell")));
}

function perplexitySurface(body, cell, measure = "delta_nll") {
  const rows = tableOf(cell.id, "perplexity");
  const title = POINT_MEASURES.find(([name]) => name === measure)[1];
  figure(body, `${title} over rank ratios, ${nameOf(cell)}`, (node, text) => ratioHeatmap(node, rows, measure, title, text), rows, `perplexity-${cell.id}`);
}

function scoreSurface(body, cell) {
  const rows = tableOf(cell.id, "scores");
  figure(body, `GPT-score (1 to 10) over rank ratios, ${nameOf(cell)}; n: answers with a score`, (node, text) =>
    ratioHeatmap(node, rows, "score", "GPT-score", text, (row) => `${shown(row.score)} (n=${row.judged})`, { range: [1, 10], reversed: false }), rows, `scores-${cell.id}`);
}

function showScores(body, parameters) {
  const candidates = measured().filter((cell) => tableOf(cell.id, "scores").some((row) => row.key_ratio !== null));
  if (!candidates.length) return body.append(nothing("no finished cell was judged (judge=openai or judge=transformers)"));
  scoreSurface(body, chooseCell(body, "scores", parameters, candidates));
}

const COSTS = [["nd_ppl", "ND-PPL, mean over the grid"], ["gpt_score", "GPT-score, mean over the grid"]];

function showCost(body, parameters) {
  const all = rowsOf(page.tables.cost);
  if (!all.length) return body.append(nothing(page.reasons.cost));
  const costs = COSTS.filter(([name]) => all.some((row) => row.cost === name));
  const cost = chosen(parameters, "cost", costs);
  const grids = asOptions(unique(all.filter((row) => row.cost === cost).map((row) => row.surface)));
  const grid = chosen(parameters, "grid", grids);
  body.append(controls("cost", { cost, grid }, select("Cost", "cost", costs, cost), select("Key x value rank ratios", "grid", grids, grid)));
  const points = all.filter((row) => row.cost === cost && row.surface === grid);
  const fits = rowsOf(page.tables.fits).filter((row) => row.cost === cost && row.surface === grid);
  const title = costs.find(([name]) => name === cost)[1];
  figure(body, `${title}, against NER; lines: least squares, bands: 95 % confidence of the mean, bars: 95 % over examples`,
    (node, text) => costAgainstNer(node, points, fits, title, text), points, `cost-${cost}`);
  const said = unique(fits.map((row) => `${row.model}\n${row.kind}`)).map((key) => fits.find((row) => `${row.model}\n${row.kind}` === key));
  const lines = said.map((row) => ({ model: row.model, kind: row.kind, cells: row.cells, pearson: row.pearson, p_value: row.p_value }));
  if (lines.length) body.append(make("h3", {}, "Correlation"), tableOfRows(lines, "Correlation of NER and cost"));
  else body.append(quiet("No line: fewer than three cells of a model."));
}

function costAgainstNer(node, points, fits, title, description) {
  const traces = unique(points.map((row) => row.model)).flatMap((model, index) => KINDS.flatMap((kind) => {
    const { color, symbol, dash } = lineStyle(index);
    const own = points.filter((row) => row.model === model), line = fits.filter((row) => row.model === model && row.kind === kind);
    const at = { kind, name: plain(model), legendgroup: model };
    const band = { ...at, mode: "lines", line: { width: 0 }, showlegend: false, hoverinfo: "skip", x: line.map((row) => row.ner) };
    return [
      { ...band, y: line.map((row) => row.low) },
      { ...band, y: line.map((row) => row.high), fill: "tonexty", fillcolor: `${color}26` },
      { ...at, mode: "lines", showlegend: false, hoverinfo: "skip", x: line.map((row) => row.ner), y: line.map((row) => row.fit), line: { color, dash } },
      {
        ...at, mode: "markers", showlegend: kind === "key", x: own.map((row) => row[`ner_${kind}`]), y: own.map((row) => row.measured),
        marker: { color, size: 9, symbol: own.map((row) => (row.converged ? symbol : `${symbol}-open`)) },
        error_y: { type: "data", symmetric: false, array: own.map((row) => row.high - row.measured), arrayminus: own.map((row) => row.measured - row.low), color, thickness: 1, width: 0 },
        text: own.map((row) => plain(`${row.dataset}, ${row.language}${row.converged ? "" : ", not converged"}`)),
        hovertemplate: `%{text}<br>NER %{x:.4f}<br>cost %{y:.4~g}<extra>${plain(model)}</extra>`,
      },
    ];
  }));
  const values = points.map((row) => row.measured).filter(Number.isFinite), room = (Math.max(...values) - Math.min(...values)) || 1; // what is not finite has no place
  panels(node, traces, axis("NER, mean over layers"), axis(title, { range: [Math.min(...values) - room * 0.4, Math.max(...values) + room * 0.4] }), description, null);
}

function showBudgets(body, parameters) {
  const all = rowsOf(page.tables.budgets);
  if (!all.length) return body.append(nothing(page.reasons.budgets ?? "no budgets"));
  const dataOf = (row) => `${row.model} · ${row.dataset}, ${row.language}${row.converged ? "" : "*"} → ${row.evaluated_on}, ${row.evaluated_language} (${row.spectrum_id})`;
  const options = asOptions(unique(all.map(dataOf)));
  const data = chosen(parameters, "data", options);
  body.append(controls("budgets", { data }, select("Model and data", "data", options, data)));
  const rows = all.filter((row) => dataOf(row) === data);
  for (const [name, title] of [["delta_nll", "Delta NLL (nats per token)"], ["share", "Share of the uniform budget's delta NLL"]]) {
    figure(body, `${title} at equal budgets; bars: 95 % over examples`, (node, text) => budgetLines(node, rows, name, title, text), rows, `budgets-${name}`);
  }
}

function budgetLines(node, rows, name, title, description) {
  const strategies = unique(rows.map((row) => row.strategy)).sort();
  const traces = strategies.map((strategy, index) => {
    const own = rows.filter((row) => row.strategy === strategy && row[name] !== null).sort((one, other) => one.budget - other.budget);
    const { color, dash, symbol } = lineStyle(index);
    return {
      name: plain(strategy), mode: "lines+markers", x: own.map((row) => row.budget), y: own.map((row) => row[name]), line: { color, dash }, marker: { symbol, size: 8 },
      error_y: { type: "data", symmetric: false, array: own.map((row) => row[`${name}_high`] - row[name]), arrayminus: own.map((row) => row[name] - row[`${name}_low`]), thickness: 1, width: 3 },
      hovertemplate: `budget %{x}<br>%{y:.4f}<extra>${plain(strategy)}</extra>`,
    };
  });
  draw(node, traces, { ...legendFor(strategies), xaxis: axis("budget (share of the cache's numbers)"), yaxis: axis(title, { rangemode: "tozero" }) }, description);
}

function showTransfer(body, parameters) {
  const all = rowsOf(page.tables.transfer);
  if (!all.length) return body.append(nothing(page.reasons.transfer ?? "no transfer"));
  const keyOf = (row) => `${row.model}, ${row.asked}`;
  const options = asOptions(unique(all.map(keyOf)));
  const matrix = chosen(parameters, "matrix", options);
  body.append(controls("transfer", { matrix }, select("Model and budget", "matrix", options, matrix)));
  const rows = all.filter((row) => keyOf(row) === matrix);
  const placed = rows.map((row) => ({ x: row.evaluated, y: row.basis + (row.converged ? "" : "*"), value: row.delta_nll, text: finite(row.delta_nll)?.toFixed(3) ?? "", framed: row.basis === row.evaluated }));
  figure(body, `Delta NLL (nats per token) on a dataset (across) with bases and ranks of another (down; framed: its own), ${matrix}`, (node, text) => heatmap(node, placed, {
    title: "Delta NLL (nats per token)", xTitle: "evaluated on", yTitle: "bases and ranks from",
    hover: "bases of %{y}<br>evaluated on %{x}<br>delta NLL %{z:.4f}<extra></extra>",
  }, text), rows, "transfer");
}

function showPublished() {
  const node = document.getElementById("published-figure");
  const rows = rowsOf(page.tables.published).map((row) => ({ ...row, kind: String(row.kind).toLowerCase().startsWith("k") ? "key" : "value" }));
  if (!node || node.childElementCount) return;
  const ends = { mode: "lines", x: [0, 1], y: [0, 1], line: { color: style("--quiet"), dash: "dot", width: 1 }, hoverinfo: "skip", showlegend: false };
  const traces = unique(rows.map((row) => row.model)).flatMap((model, index) => KINDS.map((kind) => {
    const own = rows.filter((row) => row.model === model && row.kind === kind), { color, symbol } = lineStyle(index);
    return {
      kind, name: plain(model), legendgroup: model, showlegend: kind === "key", mode: "markers", x: own.map((row) => row.published), y: own.map((row) => row.measured),
      marker: { color, size: 9, symbol: own.map((row) => (row.converged ? symbol : `${symbol}-open`)) }, text: own.map((row) => plain(`${row.dataset}, ${row.language}`)),
      hovertemplate: `%{text}<br>published %{x:.3f}<br>measured %{y:.4f}<extra>${plain(model)}</extra>`,
    };
  }));
  panels(node, [...KINDS.map((kind) => ({ kind, ...ends })), ...traces], axis("published NER"), axis("measured NER"), "Measured against published NER; dotted: equal");
}

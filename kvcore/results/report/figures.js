// Plotly figures in the page's own colours; each has a table of its data and a download beside it.

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const DASHES = ["solid", "dash", "dot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up"];
const isNarrow = () => window.matchMedia("(max-width: 48rem)").matches;
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // Plotly reads markup

function lineStyle(index) { // colours of Okabe and Ito, then again with another dash
  const count = 7;
  return {
    color: style(`--line-${(index % count) + 1}`),
    dash: DASHES[Math.floor(index / count) % DASHES.length],
    symbol: SYMBOLS[Math.floor(index / count) % SYMBOLS.length],
  };
}

function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 10 }, automargin: true, zeroline: false, linecolor: style("--rule-strong"), ticks: "outside",
    tickcolor: style("--rule-strong"), gridcolor: style("--rule"), showline: true, hoverformat: ".6~g", ...more,
  };
}

function draw(node, traces, layout, description) {
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize);
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", description);
  Plotly.newPlot(node, traces, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 40, r: 12, t: 36, b: 40 },
    font: { family: getComputedStyle(document.body).fontFamily, size: size * 0.8, color: style("--text") },
    hoverlabel: { bgcolor: style("--raised"), bordercolor: style("--rule-strong"), font: { color: style("--text") }, namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--quiet"), activecolor: style("--accent") },
    height: size * 27, ...layout,
  }, {
    responsive: true, displaylogo: false, displayModeBar: true,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // none that uploads
    toImageButtonOptions: { format: "svg", filename: description.replace(/[^\w.-]+/g, "_") },
  });
}

function legendFor(names) {
  if (names.length < 2) return { showlegend: false };
  if (!isNarrow()) return { showlegend: true, legend: { y: 0.5, yanchor: "middle", tracegroupgap: 2 } };
  return { showlegend: true, legend: { orientation: "h", y: -0.14, yanchor: "top" } };
}

// Keys left and values right, or below each other where there is no room; traces carry `kind`.
function panels(node, traces, xAxis, yAxis, description, matches = "x") {
  const narrow = isNarrow();
  const below = { ...xAxis, automargin: "height" }; // labels at the ends would move the margins, and these the labels
  const names = unique(traces.filter((trace) => trace.showlegend !== false).map((trace) => trace.name));
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const placed = traces.map(({ kind, ...trace }) => ({
    ...trace, xaxis: kind === "value" ? "x2" : "x", yaxis: kind === "value" ? "y2" : "y",
  }));
  const domains = narrow ? [[0, 1], [0, 1]] : [[0, 0.485], [0.515, 1]];
  const heights = narrow ? [[0.58, 1], [0, 0.42]] : [[0, 1], [0, 1]];
  const heading = (text, index) => ({
    text, showarrow: false, xref: "paper", yref: "paper", x: domains[index][0], xanchor: "left",
    y: heights[index][1], yanchor: "bottom", font: { size: size * 0.9, weight: 600 }, yshift: 4,
  });
  draw(node, placed, {
    ...legendFor(names), annotations: [heading("Keys", 0), heading("Values", 1)],
    height: size * (narrow ? 40 + 1.6 * Math.ceil(names.length / 2) : Math.max(27, 5 + 1.45 * names.length)),
    xaxis: { ...below, domain: domains[0] }, xaxis2: { ...below, domain: domains[1], anchor: "y2", ...(matches ? { matches } : {}) },
    yaxis: { ...yAxis, domain: heights[0] },
    yaxis2: { ...yAxis, domain: heights[1], anchor: "x2", matches: "y", ...(narrow ? {} : { title: undefined, showticklabels: false }) },
  }, description);
}

// Series are { name, rows } with rows of kind, x and y; open markers where `converged` is false.
function linesOverLayers(node, series, description, y = "ner", title = "NER (effective rank / kv_dim)") {
  const traces = series.flatMap(({ name, rows }, index) => KINDS.map((kind) => {
    const own = rows.filter((row) => row.kind === kind);
    const { color, dash, symbol } = lineStyle(index);
    const open = own.map((row) => (row.converged === false ? `${symbol}-open` : symbol));
    return {
      kind, name: plain(name), legendgroup: String(index), showlegend: kind === "key", mode: "lines+markers",
      x: own.map((row) => row.layer), y: own.map((row) => row[y]), line: { color, dash, width: 1.8 },
      marker: { color, symbol: open, size: 6 }, hovertemplate: `layer %{x}<br>%{y:.4f}<extra>${plain(name)}</extra>`,
    };
  }));
  panels(node, traces, axis("layer"), axis(title, y === "ner" ? { range: [0, 1.02] } : {}), description);
}

function convergenceLines(node, rows, description) {
  const last = Math.max(...rows.map((row) => row.layer), 1);
  const traces = KINDS.flatMap((kind) => unique(rows.map((row) => row.layer)).map((layer) => {
    const own = rows.filter((row) => row.kind === kind && row.layer === layer);
    const share = layer / last;
    return {
      kind, name: `layer ${layer}`, showlegend: false, mode: "lines", x: own.map((row) => row.tokens), y: own.map((row) => row.ner),
      line: { width: 1.4, color: `color-mix(in oklab, ${style("--line-2")} ${100 * share}%, ${style("--line-1")})` },
      hovertemplate: `%{x} tokens<br>NER %{y:.4f}<extra>layer ${layer}</extra>`,
    };
  }));
  const seen = unique(rows.map((row) => row.tokens));
  const ends = [Math.log10(Math.min(...seen)) - 0.06, Math.log10(Math.max(...seen)) + 0.06];
  const tokens = axis("tokens seen", { type: "log", tickvals: seen, ticktext: seen.map((count) => count.toLocaleString("en-US")), range: ends });
  for (const trace of traces) trace.line.color = resolved(trace.line.color);
  panels(node, traces, tokens, axis("NER", { range: [0, 1.02] }), description);
}

function resolved(color) { // Plotly knows rgb alone
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  return `rgb(${[...context.getImageData(0, 0, 1, 1).data].slice(0, 3).join(",")})`;
}

// Cells of a matrix: rows of { x, y, value, text, framed }, in the order in which they come.
function heatmap(node, rows, { title, xTitle, yTitle, range = null, scale = "Cividis", reversed = true, hover }, description) {
  const across = unique(rows.map((row) => row.x)), down = unique(rows.map((row) => row.y));
  const at = new Map(rows.map((row) => [`${row.y}\n${row.x}`, row]));
  const matrix = (pick) => down.map((y) => across.map((x) => pick(at.get(`${y}\n${x}`) ?? {})));
  const size = parseFloat(getComputedStyle(document.documentElement).fontSize);
  node.style.minWidth = `${3 + 0.45 * Math.max(...down.map((y) => String(y).length)) + 2.8 * across.length}rem`; // numbers fit; the figure scrolls
  node.style.maxWidth = `${Math.max(40, 18 + 5 * across.length)}rem`;
  const frames = rows.filter((row) => row.framed).map((row) => [across.indexOf(row.x), down.indexOf(row.y)]);
  draw(node, [{
    type: "heatmap", x: across.map(plain), y: down.map(plain), z: matrix((row) => row.value ?? null),
    text: matrix((row) => plain(row.text ?? "")), texttemplate: "%{text}", textfont: { size: size * (across.length > 7 ? 0.62 : 0.78) },
    hovertemplate: hover, colorscale: scale, reversescale: reversed, xgap: 2, ygap: 2, hoverongaps: false,
    ...(range ? { zmin: range[0], zmax: range[1] } : {}),
    showscale: !isNarrow(), colorbar: { title: { text: title, side: "right" }, thickness: 14, outlinewidth: 0 },
  }], {
    height: size * Math.max(24, 10 + 2.8 * down.length),
    shapes: frames.map(([x, y]) => ({ type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line: { color: style("--text"), width: 2 } })),
    xaxis: axis(xTitle, { type: "category", showgrid: false, tickangle: across.some((x) => String(x).length > 6) ? -40 : 0 }),
    yaxis: axis(yTitle, { type: "category", showgrid: false, autorange: "reversed" }),
  }, description);
}

function ratioHeatmap(node, points, value, title, description, text = value, more = {}) {
  const ordered = points.filter((row) => row.key_ratio !== null)
    .sort((one, other) => other.key_ratio - one.key_ratio || other.value_ratio - one.value_ratio);
  const rows = ordered.map((row) => ({
    x: String(row.value_ratio), y: String(row.key_ratio), value: finite(row[value]),
    text: typeof text === "function" ? text(row) : shown(row[text], text),
  }));
  heatmap(node, rows, {
    title, xTitle: "value rank ratio", yTitle: "key rank ratio",
    hover: `keys %{y}, values %{x}<br>${title}: %{z:.6~g}<extra></extra>`, ...more,
  }, description);
}

function figure(parent, description, drawIt, rows, file) {
  const node = make("div", { class: "figure" });
  parent.append(make("figure", {}, node, make("figcaption", {}, description), dataBelow(rows, file)));
  drawIt(node, description);
}

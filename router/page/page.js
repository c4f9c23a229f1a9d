"use strict";
// Draws /status and /live. All figures come from the metrics' own series, of all routers; nothing is kept but minutes.

const KEPT_S = 300, WINDOW_S = 30, EVERY_MS = 2000, GAP_S = 7;
const moments = []; // {at, values: Map of series to number}

const $ = (id) => document.getElementById(id);
const make = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const drawn = (name, attributes, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
};

// Figures as [number, unit]; null is a dash.
const NONE = ["–", ""];
const digits = (n) => n >= 100 || Number.isInteger(n) ? Math.round(n).toLocaleString("en") : n >= 10 ? n.toFixed(1) : n.toFixed(2);
const plain = (n) => n === null ? NONE : [digits(n), ""];
const per = (unit) => (n) => n === null ? NONE : [n === 0 ? "0" : n >= 100 ? digits(n) : n.toFixed(1), unit];
const time = (s) => s === null ? NONE : s === 0 ? ["0", "ms"] : s < 1 ? [Number((s * 1000).toPrecision(3)).toString(), "ms"] : [Number(s.toPrecision(3)).toString(), "s"];
const share = (x) => x === null ? NONE : [(x * 100).toFixed(0), "%"];
const said = ([number, unit]) => unit ? `${number} ${unit}` : number;

const of = (series, metric, wanted) =>
  (series === metric || series.startsWith(`${metric}{`)) && wanted.every((w) => series.includes(w));

// Sum over a metric's series whose labels contain all of `wanted`; null if there is none.
function sum(values, metric, ...wanted) {
  let total = null;
  for (const [series, value] of values) if (of(series, metric, wanted)) total = (total ?? 0) + value;
  return total;
}

// Growth a second. A series counts from the second moment on that it is in: a router may come, go or begin anew.
function perSecond(from, to, metric, ...wanted) {
  if (from === to) return null;
  let total = null;
  for (const [series, value] of to.values) {
    if (!of(series, metric, wanted)) continue;
    const before = from.values.get(series);
    total = (total ?? 0) + (before === undefined ? 0 : Math.max(0, value - before));
  }
  return total === null ? null : total / (to.at - from.at);
}

// A quantile of what was observed between two moments, straight within its bucket.
function quantile(from, to, metric, q) {
  const counts = new Map();
  for (const [series, value] of to.values) {
    const found = series.startsWith(`${metric}_bucket{`) && /[{,]le=([^,}]+)/.exec(series);
    const before = from.values.get(series);
    if (!found || before === undefined) continue;
    const bound = found[1] === "+Inf" ? Infinity : Number(found[1]);
    counts.set(bound, (counts.get(bound) ?? 0) + Math.max(0, value - before));
  }
  const buckets = [...counts].sort((a, b) => a[0] - b[0]);
  const total = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (total <= 0) return null;
  let below = 0, start = 0;
  for (const [bound, count] of buckets) {
    if (count >= q * total) return bound === Infinity ? start : start + (bound - start) * (q * total - below) / (count - below);
    below = count;
    start = bound;
  }
  return null;
}

// The moment a window before another, or the first after a gap.
function before(index) {
  let i = index;
  while (i > 0 && moments[index].at - moments[i].at < WINDOW_S && moments[i].at - moments[i - 1].at < GAP_S) i--;
  return moments[i];
}

function used(values, what, role) {
  const free = sum(values, `ling_worker_free_${what}`, `role=${role}`), all = sum(values, `ling_worker_${what}`, `role=${role}`);
  return all ? 1 - free / all : null;
}

// Every line by the same window: a card's number is its chart's last point.
const tokens = (metric) => (a, b) => perSecond(a, b, metric);
const at = (metric, q) => (a, b) => quantile(a, b, metric, q);
const answered = (a, b) => perSecond(a, b, "ling_requests_total", "status=200") ?? (a === b ? null : 0);
const failed = (a, b) => a === b ? null : (perSecond(a, b, "ling_requests_total") ?? 0) - answered(a, b);
const OUTPUT = tokens("ling_generated_tokens_total"), PROMPTS = tokens("ling_prompt_tokens_total");

const CARDS = [
  ["Output", per("tok/s"), OUTPUT, (a, b) => [`${said(plain(sum(b.values, "ling_generated_tokens_total")))} tokens in all`]],
  ["Prompts", per("tok/s"), PROMPTS, (a, b) => [`${said(plain(sum(b.values, "ling_prompt_tokens_total")))} tokens in all`]],
  ["Answers", per("/s"), answered, (a, b) => failed(a, b) > 0 ? [`${said(per("/s")(failed(a, b)))} failed`, "bad"] : [`${said(plain(sum(b.values, "ling_in_flight")))} in flight`]],
  ["First token", time, at("ling_ttft_seconds", 0.5), (a, b) => [`p99 ${said(time(quantile(a, b, "ling_ttft_seconds", 0.99)))}`]],
  ["Between tokens", time, at("ling_itl_seconds", 0.5), (a, b) => [`p99 ${said(time(quantile(a, b, "ling_itl_seconds", 0.99)))}`]],
  ["Whole answer", time, at("ling_request_seconds", 0.5), (a, b) => [`p99 ${said(time(quantile(a, b, "ling_request_seconds", 0.99)))}`]],
];
const CHARTS = [
  ["Tokens a second", plain, 1, ["output", "a", OUTPUT], ["prompts", "b", PROMPTS]],
  ["First token", time, 1e-3, ["p50", "a", at("ling_ttft_seconds", 0.5)], ["p99", "b", at("ling_ttft_seconds", 0.99)]],
  ["Between tokens", time, 1e-3, ["p50", "a", at("ling_itl_seconds", 0.5)], ["p99", "b", at("ling_itl_seconds", 0.99)]],
  ["Requests a second", plain, 1, ["answered", "a", answered], ["failed", "bad", (a, b) => failed(a, b) || null]],
  ["Sequences", plain, 4, ["running", "a", (a, b) => sum(b.values, "ling_worker_running")], ["queued", "b", (a, b) => sum(b.values, "ling_worker_queued")]],
  ["Decode memory in use", share, 1, ["slots", "a", (a, b) => used(b.values, "slots", "decode")], ["pages", "b", (a, b) => used(b.values, "pages", "decode")]],
];

// The least of 1, 2, 4, 5, 10, … times a power of ten that is no less: its half is a short number too.
function roundUp(n, least) {
  const wanted = Math.max(n, least), power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 4, 5, 10].map((f) => f * power).find((top) => top >= wanted * 0.999999);
}

function line(points, x, y) {
  let path = "", last = null;
  for (const [when, value] of points) {
    if (value === null) { last = null; continue; }
    path += `${last !== null && when - last < GAP_S ? "L" : "M"}${x(when).toFixed(1)} ${y(value).toFixed(1)}`;
    last = when;
  }
  return path;
}

function chart([title, format, least, ...lines], width, height) {
  const figure = make("figure", ""), caption = make("figcaption", "");
  caption.append(make("b", title), ...lines.map(([name, color]) => make("span", name, { class: `key ${color}` })));
  const rows = lines.map(([, , figureOf]) => moments.map((m, i) => [m.at, i ? figureOf(before(i), m) : null]));
  const top = format === share ? 1 : roundUp(Math.max(0, ...rows.flat().map(([, v]) => v ?? 0)), least);
  const left = 52, bottom = height - 18, end = moments[moments.length - 1].at;
  const x = (when) => left + (width - left - 2) * (1 - (end - when) / KEPT_S), y = (v) => 6 + (bottom - 6) * (1 - v / top);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of [0, top / 2, top]) {
    svg.append(drawn("line", { class: value ? "grid" : "base", x1: left, x2: width, y1: y(value), y2: y(value) }));
    svg.append(drawn("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, said(format(value))));
  }
  for (const minutes of [4, 2, 0]) {
    const text = minutes ? `−${minutes} min` : "now";
    svg.append(drawn("text", { x: x(end - 60 * minutes), y: height - 3, "text-anchor": minutes ? "middle" : "end" }, text));
  }
  rows.forEach((row, i) => svg.append(drawn("path", { class: lines[i][1], d: line(row, x, y) })));
  figure.append(caption, svg);
  return figure;
}

function filled(taken, all) {
  const cell = make("td", ""), bar = drawn("svg", { class: taken > all * 0.9 ? "bar full" : "bar", viewBox: "0 0 72 6", "aria-hidden": "true" });
  bar.append(drawn("rect", { width: all ? 72 * taken / all : 0, height: 6 }));
  cell.append(bar, make("span", `${digits(taken)} / ${digits(all)}`, { class: "wide" }), make("span", said(share(all ? taken / all : 0)), { class: "narrow" }));
  return cell;
}

function worker(w) {
  const row = make("tr", "");
  row.append(make("td", w.id));
  if (w.slots === undefined) {
    row.append(make("td", `${w.state}: ${w.problem}`, { class: "bad", colspan: 8 }));
    return row;
  }
  row.append(make("td", w.state, w.state === "live" ? {} : { class: "bad" }));
  row.append(make("td", digits(w.running), { class: "n" }), make("td", digits(w.queued), { class: "n wide" }), make("td", digits(w.transferring), { class: "n wide" }));
  row.append(filled(w.slots - w.free_slots, w.slots), filled(w.pages - w.free_pages, w.pages), make("td", said(time(w.step_s)), { class: "n wide" }),
    make("td", `${w.ranks.length} × ${w.ranks[0].device} on ${w.node}`, { class: "wide" }));
  return row;
}

function missing(role, pool) {
  return Array.from({ length: Math.max(0, pool.configured - pool.workers.length) }, () => {
    const row = make("tr", "");
    row.append(make("td", role), make("td", "missing", { class: "bad", colspan: 8 }));
    return row;
  });
}

function card([title, format, figure, below], from, last) {
  const made = make("div", "", { class: "card" }), [number, unit] = format(figure(from, last)), [text, color] = below(from, last);
  const value = make("b", number);
  if (unit) value.append(" ", make("i", unit));
  made.append(make("h2", title), value, make("small", text, color ? { class: color } : {}));
  return made;
}

function draw(status) {
  const last = moments[moments.length - 1], from = before(moments.length - 1);
  const routers = [...last.values.keys()].filter((series) => /^ling_in_flight(\{|$)/.test(series)).length;
  document.title = `${status.model} – Ling cluster`;
  $("model").textContent = status.model;
  $("ready").textContent = status.ready ? "ready" : `not ready: ${status.reason}`;
  $("ready").className = `badge ${status.ready ? "good" : "bad"}`;
  $("routers").textContent = `${routers} router${routers === 1 ? "" : "s"}, ${digits(sum(last.values, "ling_in_flight"))} of ${digits(sum(last.values, "ling_in_flight_limit"))} in flight`;
  $("cards").replaceChildren(...CARDS.map((c) => card(c, from, last)));
  const columns = getComputedStyle($("charts")).gridTemplateColumns.split(" "), width = Math.max(160, parseFloat(columns[0]) - 30);
  $("charts").replaceChildren(...CHARTS.map((c) => chart(c, width, columns.length === 1 ? 120 : 150)));
  $("workers").replaceChildren(...Object.entries(status.pools).flatMap(([role, pool]) => [...pool.workers.map(worker), ...missing(role, pool)]));
}

async function update() {
  try {
    const since = moments.length ? moments[moments.length - 1].at : 0;
    const [status, live] = await Promise.all(["status", `live?since=${since}`].map((path) => fetch(path).then((r) => r.json())));
    live.times.forEach((when, i) => {
      const values = Object.entries(live.series).map(([name, column]) => [name, column[i]]).filter(([, v]) => v !== null);
      moments.push({ at: when, values: new Map(values) });
    });
    while (moments.length && moments[moments.length - 1].at - moments[0].at > KEPT_S) moments.shift();
    if (moments.length) draw(status);
  } catch (error) {
    console.error(error);
    $("ready").textContent = "the router does not answer";
    $("ready").className = "badge bad";
  }
  setTimeout(update, EVERY_MS);
}

update();

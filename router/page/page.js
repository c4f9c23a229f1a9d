"use strict";
// Draws /status and /live. All figures come from the metrics' own series; nothing is kept but the last minutes.

const KEPT_S = 300, RECENT_S = 60, EVERY_MS = 2000;
const moments = []; // {at, values: Map of series to number}

const $ = (id) => document.getElementById(id);
const make = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const drawn = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

const whole = (n) => n === null ? "–" : Math.round(n).toLocaleString("en");
const rate = (n) => n === null ? "–" : n >= 100 ? whole(n) : n.toFixed(1);
const time = (s) => s === null ? "–" : s < 1 ? `${(s * 1000).toPrecision(3)} ms` : `${s.toPrecision(3)} s`;
const share = (x) => x === null ? "–" : `${(x * 100).toFixed(0)} %`;

// Sum over a metric's series whose labels contain all of `wanted`; null if there is none.
function sum(values, metric, ...wanted) {
  let total = null;
  for (const [series, value] of values) {
    if ((series === metric || series.startsWith(`${metric}{`)) && wanted.every((w) => series.includes(w))) {
      total = (total ?? 0) + value;
    }
  }
  return total;
}

function perSecond(from, to, metric, ...wanted) {
  if (from === to) return null;
  const a = sum(from.values, metric, ...wanted) ?? 0, b = sum(to.values, metric, ...wanted);
  return b === null ? null : Math.max(0, b - a) / (to.at - from.at);
}

// A quantile of what was observed between two moments, straight within its bucket.
function quantile(from, to, metric, q) {
  const counts = new Map();
  for (const [series, value] of to.values) {
    const found = series.startsWith(`${metric}_bucket{`) && /[{,]le=([^,}]+)/.exec(series);
    if (!found) continue;
    const bound = found[1] === "+Inf" ? Infinity : Number(found[1]);
    counts.set(bound, (counts.get(bound) ?? 0) + value - (from.values.get(series) ?? 0));
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

// The moment about `seconds` before another, the first there is at the latest.
function before(index, seconds) {
  let i = index;
  while (i > 0 && moments[index].at - moments[i].at < seconds) i--;
  return moments[i];
}

function used(values, what, role) {
  const free = sum(values, `ling_worker_free_${what}`, `role=${role}`), all = sum(values, `ling_worker_${what}`, `role=${role}`);
  return all ? 1 - free / all : null;
}

const CARDS = [
  ["Output", (a, b) => [`${rate(perSecond(a, b, "ling_generated_tokens_total"))} tok/s`, `${whole(sum(b.values, "ling_generated_tokens_total"))} tokens`]],
  ["Prompts", (a, b) => [`${rate(perSecond(a, b, "ling_prompt_tokens_total"))} tok/s`, `${whole(sum(b.values, "ling_prompt_tokens_total"))} tokens`]],
  ["Requests", (a, b) => [`${rate(perSecond(a, b, "ling_requests_total") ?? 0)} /s`, `${whole(sum(b.values, "ling_requests_total") ?? 0)} answered, ${whole(sum(b.values, "ling_in_flight"))} in flight`]],
  ["First token", (a, b) => [time(quantile(a, b, "ling_ttft_seconds", 0.5)), `p99 ${time(quantile(a, b, "ling_ttft_seconds", 0.99))}`]],
  ["Between tokens", (a, b) => [time(quantile(a, b, "ling_itl_seconds", 0.5)), `p99 ${time(quantile(a, b, "ling_itl_seconds", 0.99))}`]],
  ["Whole answer", (a, b) => [time(quantile(a, b, "ling_request_seconds", 0.5)), `p99 ${time(quantile(a, b, "ling_request_seconds", 0.99))}`]],
];
const CHARTS = [
  ["Tokens a second", rate, ["output", (a, b) => perSecond(a, b, "ling_generated_tokens_total")], ["prompts", (a, b) => perSecond(a, b, "ling_prompt_tokens_total")]],
  ["To the first token", time, ["p50", (a, b) => quantile(a, b, "ling_ttft_seconds", 0.5)], ["p99", (a, b) => quantile(a, b, "ling_ttft_seconds", 0.99)]],
  ["Between tokens", time, ["p50", (a, b) => quantile(a, b, "ling_itl_seconds", 0.5)], ["p99", (a, b) => quantile(a, b, "ling_itl_seconds", 0.99)]],
  ["Sequences", whole, ["running", (a, b) => sum(b.values, "ling_worker_running")], ["queued", (a, b) => sum(b.values, "ling_worker_queued")]],
  ["Decode memory in use", share, ["slots", (a, b) => used(b.values, "slots", "decode")], ["pages", (a, b) => used(b.values, "pages", "decode")]],
  ["Requests a second", rate, ["answered", (a, b) => perSecond(a, b, "ling_requests_total", "status=200") ?? 0],
    ["refused or failed", (a, b) => (perSecond(a, b, "ling_requests_total") ?? 0) - (perSecond(a, b, "ling_requests_total", "status=200") ?? 0)]],
];

function chart([title, format, ...lines]) {
  const figure = make("figure", "");
  const caption = make("figcaption", "");
  caption.append(make("b", title));
  const width = 360, height = 120, now = moments[moments.length - 1].at;
  const rows = lines.map(([, figureOf]) => moments.map((m, i) => [m.at, i ? figureOf(before(i, 10), m) : null]).filter(([, v]) => v !== null));
  const top = Math.max(...rows.flat().map(([, v]) => v), 0) || 1;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
  for (const y of [0, height / 2, height]) svg.append(drawn("line", { class: "grid", x1: 0, x2: width, y1: y, y2: y }));
  rows.forEach((row, i) => {
    const [name] = lines[i], last = row.length ? row[row.length - 1][1] : null;
    caption.append(make("span", `${name} ${format(last)}`, { class: i ? "key b" : "key" }));
    const points = row.map(([at, v]) => `${(width * (1 - (now - at) / KEPT_S)).toFixed(1)},${(height * (1 - v / top)).toFixed(1)}`);
    svg.append(drawn("polyline", { class: i ? "b" : "a", points: points.join(" ") }));
  });
  figure.append(caption, make("small", format(top)), svg);
  return figure;
}

function bar(taken, all) {
  const cell = make("td", "");
  cell.append(make("meter", "", { max: all, value: taken, high: all * 0.9, "aria-label": `${taken} of ${all}` }), ` ${whole(taken)} / ${whole(all)}`);
  return cell;
}

function worker(role, w) {
  const row = make("tr", "");
  row.append(make("td", w.id), make("td", role), make("td", w.problem ? `${w.state}: ${w.problem}` : w.state, w.state === "live" ? {} : { class: "bad" }));
  if (w.slots === undefined) return row;
  for (const n of [w.running, w.queued, w.transferring]) row.append(make("td", whole(n), { class: "n" }));
  row.append(bar(w.slots - w.free_slots, w.slots), bar(w.pages - w.free_pages, w.pages), make("td", time(w.step_s), { class: "n" }),
    make("td", `${w.ranks.length} × ${w.ranks[0].device} on ${w.node}`));
  return row;
}

function draw(status) {
  const last = moments[moments.length - 1], from = before(moments.length - 1, RECENT_S);
  document.title = `${status.model} – Ling cluster`;
  $("model").textContent = status.model;
  $("ready").textContent = status.ready ? "ready" : `not ready: ${status.reason}`;
  $("ready").className = `badge ${status.ready ? "good" : "bad"}`;
  $("router").textContent = `${status.router.name}: ${status.router.in_flight} of ${status.router.max_queue} in flight`;
  $("cards").replaceChildren(...CARDS.map(([title, figures]) => {
    const card = make("div", "", { class: "card" }), [main, small] = figures(from, last);
    card.append(make("h2", title), make("b", main), make("small", small));
    return card;
  }));
  $("charts").replaceChildren(...CHARTS.map(chart));
  $("workers").replaceChildren(...Object.entries(status.pools).flatMap(([role, pool]) => pool.workers.map((w) => worker(role, w))));
}

async function update() {
  try {
    const since = moments.length ? moments[moments.length - 1].at : 0;
    const [status, live] = await Promise.all(["status", `live?since=${since}`].map((path) => fetch(path).then((r) => r.json())));
    live.times.forEach((at, i) => {
      const values = Object.entries(live.series).map(([name, column]) => [name, column[i]]).filter(([, v]) => v !== null);
      moments.push({ at, values: new Map(values) });
    });
    while (moments.length && moments[moments.length - 1].at - moments[0].at > KEPT_S) moments.shift();
    if (moments.length) draw(status);
  } catch (error) {
    $("ready").textContent = "the router does not answer";
    $("ready").className = "badge bad";
  }
  setTimeout(update, EVERY_MS);
}

update();

// The table of the lesson. A row is redrawn when its intent changed, and all that changed is drawn once a frame.
import { count, dollars, element, many } from "./words.js";

const body = document.getElementById("rows");
const rows = new Map();
let changed = new Map(), drawing = false;

export function clear() {
  rows.clear();
  changed.clear();
  body.replaceChildren();
}

export function show(intents) {
  for (const i of intents) changed.set(i.n, i);
  if (!drawing) requestAnimationFrame(draw);
  drawing = true;
}

function draw() {
  drawing = false;
  const now = changed;
  changed = new Map();
  const fresh = [];
  for (const i of [...now.values()].sort((a, b) => b.n - a.n)) {
    const row = build(i);
    if (rows.has(i.n)) rows.get(i.n).replaceWith(row);
    else fresh.push(row);
    rows.set(i.n, row);
  }
  body.prepend(...fresh);
}

function build(i) {
  const row = element("tr", i.account.charges > 1 ? "twice-row" : "");
  row.id = `intent-${i.n}`;
  const tries = element("td", "");
  tries.append(...i.tries.map(attempt));
  row.append(element("td", "num", count(i.n)), key(i), status(i), tries, result(i.account));
  return row;
}

function key(i) {
  const cell = element("td", "key", i.key ? "…" + i.key.slice(-8) : "–");
  cell.title = i.key;
  if (!i.keyed && i.tries.length > 1) cell.textContent += " (another each time)";
  return cell;
}

function status(i) {
  if (!i.done) return element("td", "soft", i.tries.length ? "asking" : "waiting for its turn");
  if (!i.answered) return element("td", "unknown", "? no answer: unknown");
  const last = i.tries.at(-1);
  return element("td", "good", last?.replayed ? "✓ replayed" : "✓ answered");
}

function attempt(t) {
  if (t.lost) return element("span", "try lost", `${t.attempt} ✂ reply lost`);
  if (t.status === 0) return element("span", "try", `${t.attempt} sent`);
  if (t.status === 201) return element("span", "try ok", `${t.attempt} ${t.replayed ? "↺ 201 replayed" : "201 created"}`);
  return element("span", "try err", `${t.attempt} ${t.status === 502 ? "nobody there" : t.status}`);
}

function result(a) {
  if (a.charges > 1) return element("td", "bad", `${many(a.orders, "order")}, charged ${a.charges}×: ${dollars(a.money)}`);
  if (a.charges === 1) return element("td", "good", `charged once: ${dollars(a.money)}` + (a.orders > 1 ? `, ${a.orders} orders` : ""));
  if (a.orders > 0) return element("td", "soft", "ordered, not charged yet");
  return element("td", "soft", "nothing yet");
}

// One row of the table: what it says of its intent.
import { count, dollars, element, many } from "./words.js";

export const triesColumn = 3;

export function blank(n) {
  const node = element("tr", ""), cells = ["num", "key", "", "tries", ""].map((name) => element("td", name));
  node.id = `intent-${n}`;
  node.role = "row";
  for (const c of cells) c.role = "cell";
  node.append(...cells);
  return node;
}

// fill writes only what is another text than before.
export function fill(node, i) {
  const [number, key, state, tries, came] = node.cells;
  node.className = i.account.charges > 1 ? "twice-row" : "";
  set(number, "num", count(i.n));
  set(key, "key", (i.key ? "…" + i.key.slice(-8) : "–") + (renamed(i) ? ` one of ${i.tries.length} keys` : ""));
  key.title = i.key;
  set(state, ...status(i));
  i.tries.forEach((t, n) => set(tries.children[n] ?? tries.appendChild(element("span", "")), ...attempt(t)));
  set(came, ...result(i.account));
}

function set(node, name, text) {
  if (node.className !== name) node.className = name;
  if (node.textContent !== text) node.textContent = text;
}

// lines is how many lines a row takes: its tries stand so many side by side, and in narrow cells its key or its result may need two.
export function lines(i, perLine, narrowCells) {
  const two = narrowCells && (renamed(i) || i.account.orders > 1);
  return Math.max(two ? 2 : 1, Math.ceil(i.tries.length / perLine));
}

const renamed = (i) => !i.keyed && i.tries.length > 1;

function status(i) {
  if (!i.done) return ["soft", i.tries.length ? "asking" : "waiting for its turn"];
  if (!i.answered) return ["unknown", "? no answer: unknown"];
  return ["good", i.tries.at(-1)?.replayed ? "✓ replayed" : "✓ answered"];
}

function attempt(t) {
  if (t.lost) return ["try lost", `${t.attempt} ✂ reply lost`];
  if (t.status === 0) return ["try", `${t.attempt} sent`];
  if (t.status === 201) return ["try ok", `${t.attempt} ${t.replayed ? "↺ 201 replayed" : "201 created"}`];
  return ["try err", `${t.attempt} ${t.status === 502 ? "nobody there" : t.status}`];
}

function result(a) {
  if (a.charges > 1) return ["bad", `${many(a.orders, "order")}, charged ${a.charges}×: ${dollars(a.money)}`];
  if (a.charges === 1) return ["good", `charged once: ${dollars(a.money)}` + (a.orders > 1 ? `, ${a.orders} orders` : "")];
  if (a.orders > 0) return ["soft", "ordered, not charged yet"];
  return ["soft", "nothing yet"];
}

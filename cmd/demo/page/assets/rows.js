// The table of the lesson. All intents are in memory; in the document stand only the rows that can be seen, each where it would be
// among all of them. What changed is drawn once a frame, and nothing is measured for that: a row's height follows from its intent.
import { blank, fill, lines, triesColumn } from "./row.js";

const view = document.getElementById("intents"), table = view.querySelector("table"), body = document.getElementById("rows");
const head = table.tHead.rows[0].cells[triesColumn];
const spare = 300; // pixels above and below what is seen, for a scroll that is faster than a frame

const intents = [];     // by their numbers, which begin with 1
const tops = [];        // where each one's row begins: the newest is on top
const rows = new Map(); // those in the document, by index
const changed = new Set();
let whole = 0, scrolled = 0, seen = 0, drawing = false; // heights, in pixels
let line = 0, around = 0, perLine = 1, narrow = false;  // how the style sheet lays out a row

export function clear() {
  intents.length = tops.length = 0;
  rows.clear();
  changed.clear();
  body.replaceChildren();
  view.scrollTop = scrolled = 0;
  soon();
}

export function show(some) {
  for (const i of some) {
    intents[i.n - 1] = i;
    changed.add(i.n - 1);
  }
  soon();
}

function soon() {
  if (!drawing) requestAnimationFrame(draw);
  drawing = true;
}

view.addEventListener("scroll", () => {
  scrolled = view.scrollTop;
  soon();
}, { passive: true });

new ResizeObserver(() => {
  if (view.clientHeight === 0) return; // the other view is looked at
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  narrow = matchMedia("(max-width: 44rem)").matches;
  seen = view.clientHeight;
  line = 1.6 * rem;
  around = (narrow ? 5.5 : 0.8) * rem;
  perLine = Math.max(1, Math.floor(((narrow ? body : head).clientWidth - rem) / (8.9 * rem)));
  view.style.setProperty("--per-line", perLine);
  for (const k of intents.keys()) changed.add(k);
  soon();
}).observe(view);

// at is the index of the row at a height.
function at(y) {
  let low = 0, high = intents.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (tops[middle] > y) low = middle + 1;
    else high = middle;
  }
  return low;
}

// place finds where each row begins. What one has scrolled to stays where it is.
function place() {
  const before = at(scrolled), into = scrolled - tops[before];
  whole = 0;
  for (let k = intents.length - 1; k >= 0; k--) {
    tops[k] = whole;
    whole += Math.round(around + line * lines(intents[k], perLine, !narrow));
  }
  body.style.height = `${whole}px`;
  table.ariaRowCount = intents.length + 1;
  if (scrolled > 0 && into >= 0 && tops[before] + into !== scrolled) view.scrollTop = scrolled = tops[before] + into;
}

function draw() {
  drawing = false;
  if (changed.size > 0 || intents.length === 0) place();
  const last = at(scrolled + seen + spare), first = intents.length ? at(scrolled - spare) : -1; // the first has the higher number
  for (const [k, row] of rows) {
    if (k >= last && k <= first) continue;
    row.node.remove();
    rows.delete(k);
  }
  let next = body.firstChild;
  for (let k = first; k >= last; k--) {
    const row = rows.get(k) ?? { node: blank(k + 1) };
    if (!rows.has(k) || changed.has(k)) fill(row.node, intents[k]);
    rows.set(k, row);
    stand(row, k);
    if (row.node === next) next = next.nextSibling;
    else body.insertBefore(row.node, next);
  }
  changed.clear();
}

function stand(row, k) {
  const top = tops[k], height = (k > 0 ? tops[k - 1] : whole) - top, index = intents.length - k + 1; // that of the head is 1
  if (row.top !== top) row.node.style.translate = `0 ${top}px`;
  if (row.height !== height) row.node.style.height = `${height}px`;
  if (row.index !== index) row.node.ariaRowIndex = index;
  Object.assign(row, { top, height, index });
}

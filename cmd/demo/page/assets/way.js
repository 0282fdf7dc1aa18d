// The stations, with what each has counted. A number that grew is shown as that many moving on; nothing moves by itself.
import { count, element, many } from "./words.js";

const waiting = (s) => Math.max(0, s.way.outbox - s.published);

const stations = [
  { name: "clients", count: (s) => s.sums.intents, what: (s) => s.sums.running ? `${count(s.sums.running)} still asking` : "want to pay" },
  { name: "link", count: (s) => s.tries, lost: (s) => s.lost, what: (s) => `tries; ${many(s.lost, "reply", "replies")} lost` },
  { name: "orders", count: (s) => s.sums.orders, what: () => "orders committed", process: "orders" },
  { name: "outbox", count: (s) => s.way.outbox, waits: waiting,
    what: (s) => waiting(s) ? `${count(waiting(s))} not published yet` : "events, all published" },
  { name: "JetStream", count: (s) => s.published + s.copies, waits: (s) => s.way.waiting, process: "NATS",
    what: (s) => s.way.waiting ? `${count(s.way.waiting)} wait for billing` : s.copies ? `messages, ${count(s.copies)} of them copies` : "messages" },
  { name: "inbox", count: (s) => s.way.stopped, what: () => "stopped since billing’s start" },
  { name: "billing", count: (s) => s.sums.charges, process: "billing",
    what: (s) => s.way.dead ? `charges; ${many(s.way.dead, "dead letter")}` : "charges" },
  { name: "paid", count: (s) => s.sums.paid, what: (s) => s.way.answers ? `${count(s.way.answers)} answers under way` : "orders settled" },
];

const still = matchMedia("(prefers-reduced-motion: reduce)");
const words = { dead: "killed", paused: "stands still", silent: "does not answer" };
const list = document.getElementById("way");
for (const s of stations) {
  s.node = element("li", "");
  s.number = element("span", "count", "0");
  s.text = element("span", "what");
  for (const part of [element("div", "name", s.name), s.number, s.text]) s.node.append(part);
  s.before = s.lostBefore = 0;
  s.grown = { node: s.node, more: 0, text: (n) => `+${count(n)}`, kind: "" };
  s.cut = { node: s.node, more: 0, text: (n) => `✂ ${count(n)}`, kind: "lost" };
  list.append(s.node);
}

const set = (node, text) => { if (node.textContent !== text) node.textContent = text; };

export function show(state, fresh) {
  const processes = new Map(state.processes.map((p) => [p.name, p]));
  for (const s of stations) {
    const n = s.count(state), lost = s.lost?.(state) ?? 0;
    const down = words[processes.get(s.process)?.state];
    set(s.number, count(n));
    set(s.text, down ?? s.what(state));
    s.node.dataset.state = down ? "dead" : s.waits?.(state) > 0 ? "waits" : "";
    move(s.grown, fresh ? 0 : n - s.before);
    move(s.cut, fresh ? 0 : lost - s.lostBefore);
    s.before = n;
    s.lostBefore = lost;
  }
  showProcesses(state.processes);
}

// move shows that so many move on: one sign at a time, and what comes meanwhile goes with the next one.
function move(sign, more) {
  sign.more = unseen() ? 0 : sign.more + Math.max(0, more);
  if (sign.more === 0 || sign.moves) return;
  const dot = element("span", "move " + sign.kind, sign.text(sign.more));
  dot.setAttribute("aria-hidden", "true");
  dot.onanimationend = dot.onanimationcancel = () => {
    dot.remove();
    sign.moves = false;
    move(sign, 0);
  };
  sign.more = 0;
  sign.moves = true;
  sign.node.append(dot);
}

const unseen = () => document.hidden || still.matches || list.closest("[hidden]") !== null;

const processList = document.getElementById("processes");
function showProcesses(processes) {
  while (processList.children.length < processes.length) processList.append(element("li", ""));
  processes.forEach((p, i) => {
    const node = processList.children[i];
    node.dataset.state = p.state;
    set(node, `${p.name.replace("the ", "")}: ${words[p.state] ?? "runs"}${p.state === "up" && p.pid ? `, pid ${p.pid}` : ""}`);
  });
}

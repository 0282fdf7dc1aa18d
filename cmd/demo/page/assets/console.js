// The operators' console: how each service stands, what it could not handle, and what to do about it.
import { get, post } from "./api.js";
import { count, element, many, put } from "./words.js";

const $ = (id) => document.getElementById(id);
let desks = [];

export function start() {
  $("follow").addEventListener("submit", (e) => {
    e.preventDefault();
    follow($("q").value);
  });
  for (const id of ["f-service", "f-class"]) $(id).addEventListener("change", () => show(desks));
  for (const what of ["retry", "drop"]) {
    $(what + "-all").addEventListener("click", () =>
      post("operate", { service: $("f-service").value, kind: "letter", do: what, class: $("f-class").value }));
  }
}

export function show(now) {
  desks = now;
  const box = $("desks");
  while (box.children.length < desks.length) box.append(element("article", "card desk"));
  desks.forEach((d, i) => stand(box.children[i], d));
  const letters = of($("f-service").value)?.letters ?? [];
  classes(letters);
  const wanted = letters.filter((l) => !$("f-class").value || l.class === $("f-class").value);
  list("letters", wanted.map((l) => ({ id: `letter-${$("f-service").value}-${l.n}`, service: $("f-service").value, kind: "letter", n: l.n, key: l.key,
    title: `${l.n} · ${l.class}`, text: l.reason, about: `${l.topic}, ${many(l.attempts, "attempt")}, ${time(l.at)}, event ${l.event}` })));
  put("no-letters", of($("f-service").value)?.more ? "The first 50 are shown." : "There are none.");
  $("no-letters").hidden = wanted.length > 0 && !of($("f-service").value).more;
  for (const what of ["retry-all", "drop-all"]) $(what).setAttribute("aria-disabled", String(wanted.length === 0));
  const parked = desks.flatMap((d) => (d.parked ?? []).map((e) => ({ id: `parked-${d.name}-${e.seq}`, service: d.name, kind: "parked", n: e.seq, key: e.key,
    title: `${d.name} · ${e.seq}${e.asked ? " · asked" : ""}`, text: e.reason, about: `${e.topic}, ${time(e.at)}, event ${e.event}` })));
  list("parked", parked);
  $("no-parked").hidden = parked.length > 0;
}

const of = (service) => desks.find((d) => d.name === service);
const time = (at) => new Date(at).toLocaleTimeString();

function stand(card, d) {
  if (!card.children.length) {
    card.append(element("h2", ""), element("dl", ""));
    for (const name of ["relay", "not published", "oldest of them", "parked", "dead letters", "before it", "in flight", "redelivered", "stopped by the inbox"]) {
      const pair = element("div", "");
      pair.append(element("dt", "", name), element("dd", ""));
      pair.lastChild.dataset.of = name;
      card.lastChild.append(pair);
    }
  }
  card.dataset.state = d.answers ? "up" : "dead";
  const values = [d.leading ? `leads, epoch ${d.epoch}` : "stands by", count(d.backlog), d.oldestFor ? `${d.oldestFor.toFixed(1)} s` : "–",
    count((d.parked ?? []).length), count((d.letters ?? []).length) + (d.more ? "+" : ""), count(d.pending), count(d.unacked), count(d.again), count(d.stopped)];
  text(card.firstChild, d.answers ? d.name : `${d.name} does not answer`);
  card.querySelectorAll("dd").forEach((dd, i) => text(dd, values[i]));
}

// waiting tells, in the other view too, that there is something to decide.
export function waiting({ letters, more }) {
  const badge = $("letters-count");
  badge.hidden = letters === 0;
  text(badge, more ? `more than ${letters} dead letters` : many(letters, "dead letter"));
}

const text = (node, s) => { if (node.textContent !== s) node.textContent = s; };

function classes(letters) {
  const select = $("f-class"), chosen = select.value;
  const names = ["", ...new Set(letters.map((l) => l.class))];
  if (names.join() === [...select.options].map((o) => o.value).join()) return;
  select.replaceChildren(...names.map((n) => new Option(n || "every class", n)));
  select.value = names.includes(chosen) ? chosen : "";
}

// list keeps what is there already: a button that has the focus keeps it.
function list(id, items) {
  const box = $(id), ids = new Set(items.map((i) => i.id));
  for (const li of [...box.children]) if (!ids.has(li.id)) li.remove();
  for (const item of items) {
    const old = document.getElementById(item.id);
    if (old?.dataset.is === JSON.stringify(item)) continue;
    if (old) [...old.querySelectorAll("strong, p")].forEach((n, i) => text(n, [item.title, item.text, item.about][i]));
    else box.append(entry(item));
    document.getElementById(item.id).dataset.is = JSON.stringify(item);
  }
}

function entry(item) {
  const li = element("li", ""), head = element("div", "head"), name = `${item.kind} ${item.title}`;
  li.id = item.id;
  head.append(element("strong", "", item.title));
  for (const what of ["retry", "drop"]) {
    head.append(button(what === "retry" ? "Retry" : "Drop", `${what} ${name}`, () => post("operate", { service: item.service, kind: item.kind, do: what, n: item.n })));
  }
  if (item.key) head.append(button("Follow", `Follow ${name}`, () => { $("q").value = item.key; follow(item.key); }));
  li.append(head, element("p", "", item.text), element("p", "sub", item.about));
  return li;
}

function button(title, label, press) {
  const b = element("button", "", title);
  b.type = "button";
  b.setAttribute("aria-label", label);
  b.addEventListener("click", press);
  return b;
}

// draw puts the drawings in: they are the server's own, of its own numbers.
export function draw(charts) {
  for (const [id, svg] of Object.entries(charts)) $("chart-" + id).innerHTML = svg;
}

async function follow(q) {
  const j = await get("journey?q=" + encodeURIComponent(q));
  if (!j) return $("journey").replaceChildren();
  const first = Date.parse(j.steps[0].at);
  $("journey").replaceChildren(...j.steps.map((s) => {
    const li = element("li", s.bad ? "bad" : "");
    li.append(element("span", "when", `+${count(Date.parse(s.at) - first)} ms`), element("span", "where", s.where), element("span", "what", s.what));
    if (s.event) li.title = "event " + s.event;
    return li;
  }));
}

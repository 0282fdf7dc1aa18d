// Faults and chapters as the server lists them, and what came of them.
import { post } from "./api.js";
import { element, say } from "./words.js";

const log = document.getElementById("log");
const shown = new Map();
let busy = "";

export function build({ faults, chapters }) {
  busy = "";
  fill("faults", faults, (f) => [element("p", "", f.off ? `Not here: ${f.off}` : f.does), element("p", "expect", f.expect)]);
  fill("chapters", chapters, (c) => [element("p", "", c.lesson), element("p", "expect", c.guess)]);
}

function fill(id, all, texts) {
  document.getElementById(id).replaceChildren(...all.map((one) => {
    const item = element("li", ""), button = element("button", "", one.title), text = element("div", "");
    button.type = "button";
    button.id = `${id}-${one.id}`;
    text.id = button.id + "-text";
    button.setAttribute("aria-describedby", text.id);
    if (one.off) {
      button.setAttribute("aria-disabled", "true");
      button.dataset.off = "";
    }
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-disabled") !== "true") post(`${id}/${one.id}`);
      else say(one.off ?? "Something is under way: wait for its outcome.");
    });
    text.append(...texts(one), element("p", "came"));
    item.append(button, text);
    return item;
  }));
}

export function show(state) {
  if (busy !== state.busy) {
    busy = state.busy;
    for (const b of document.querySelectorAll(".list button:not([data-off])")) b.setAttribute("aria-disabled", String(busy !== ""));
  }
  for (const o of state.outcomes) {
    let item = shown.get(o.id);
    if (item?.dataset.state === o.state) continue;
    if (!item) {
      item = element("li", "");
      shown.set(o.id, item);
      log.prepend(item);
    }
    item.dataset.state = o.state;
    item.dataset.of = o.of;
    const mark = { ok: "✓", failed: "✗", running: "…", missed: "○" }[o.state];
    const text = o.state === "running" ? "under way" : o.text;
    item.textContent = `${mark} ${o.title}: ${text}`;
    const came = document.querySelector(`#${o.kind}s-${o.of}-text .came`);
    came.dataset.state = o.state;
    came.textContent = `${mark} ${text}`;
  }
}

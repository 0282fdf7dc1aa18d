// The two views of the page: the lab, and the operators' console, which is asked for as long as it is looked at.
import * as desk from "./console.js";

const all = ["lab", "console"];
let source;

export const view = () => (location.hash.startsWith("#console") ? "console" : "lab");

export function start() {
  desk.start();
  for (const link of document.querySelectorAll("[data-view]")) {
    link.addEventListener("click", (e) => {
      e.preventDefault();
      const rest = location.hash.replace(/^#(lab|console)?&?/, "");
      history.pushState(null, "", "#" + [link.dataset.view === "lab" ? "" : link.dataset.view, rest].filter(Boolean).join("&"));
      show();
    });
  }
  addEventListener("popstate", show);
  show();
}

function show() {
  const now = view();
  for (const id of all) {
    document.getElementById(id).hidden = id !== now;
    const link = document.getElementById("to-" + id);
    if (id === now) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  source?.close();
  source = undefined;
  if (now !== "console") return;
  source = new EventSource("api/console");
  source.addEventListener("desks", (e) => desk.show(JSON.parse(e.data)));
  source.addEventListener("charts", (e) => desk.draw(JSON.parse(e.data)));
}

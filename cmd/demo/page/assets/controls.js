// The controls show the server's settings, and a run's link holds them.
import { post } from "./api.js";
import { view } from "./views.js";
import { put, say } from "./words.js";

const $ = (id) => document.getElementById(id);
const read = () => ({ seed: Number($("seed").value), loss: Number($("loss").value), keys: $("keys").checked, retries: $("retries").checked });
const asked = linked(); // what the page was opened with
let first = true;

function linked() {
  const q = new URLSearchParams(location.hash.slice(1));
  if (!q.has("seed")) return null;
  return { seed: Number(q.get("seed")), loss: Number(q.get("loss")), keys: q.get("keys") === "on", retries: q.get("retries") === "on",
    pay: Number(q.get("pay")) };
}

// A view's name stands before the settings: #console&seed=…
const hash = (s, pay) => (view() === "lab" ? "#" : `#${view()}&`) + new URLSearchParams({ seed: s.seed, loss: s.loss, keys: s.keys ? "on" : "off",
  retries: s.retries ? "on" : "off", pay });

export function start() {
  for (const button of document.querySelectorAll("[data-pay]")) {
    button.addEventListener("click", () => post("pay", { count: Number(button.dataset.pay) }));
  }
  for (const id of ["loss", "keys", "retries", "seed"]) $(id).addEventListener("change", () => post("settings", read()));
  $("loss").addEventListener("input", () => put("loss-out", $("loss").value + " %"));
  $("reset").addEventListener("click", () => post("reset"));
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  });
  $("replay").addEventListener("click", async () => {
    $("replay").hidden = true;
    const { pay, ...settings } = asked;
    await post("reset");
    await post("settings", settings);
    for (let left = pay; left > 0; left -= 1000) await post("pay", { count: Math.min(left, 1000) });
  });
  document.addEventListener("keydown", (e) => {
    const typing = e.target.matches("input, textarea, select") || e.ctrlKey || e.metaKey || e.altKey;
    if (e.key === "p" && !typing && !e.repeat) post("pay", { count: 1 });
  });
}

export function show({ settings, sums }) {
  const now = hash(settings, sums.intents);
  if (first && asked && hash(asked, asked.pay) !== now) $("replay").hidden = false;
  first = false;
  if ($("replay").hidden && location.hash !== now) history.replaceState(null, "", now);
  for (const id of ["keys", "retries"]) $(id).checked = settings[id];
  for (const id of ["loss", "seed"]) if (document.activeElement !== $(id)) $(id).value = settings[id];
  if (document.activeElement !== $("loss")) put("loss-out", settings.loss + " %");
}

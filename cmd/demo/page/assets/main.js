// The page's wiring: what the server tells goes to the parts, and nothing is counted here.
import { start as controls, show as showControls } from "./controls.js";
import { show as showLedgers } from "./ledgers.js";
import { show as showWay } from "./way.js";
import { build as buildLab, show as showLab } from "./lab.js";
import { waiting as showWaiting } from "./console.js";
import { start as views } from "./views.js";
import { show as showRows, clear as clearRows } from "./rows.js";

let run = "";
controls();
views();

const source = new EventSource("api/events");
const live = document.getElementById("live");
const mark = (state) => { live.dataset.state = live.textContent = state; };
source.onopen = () => { mark("live"); run = ""; }; // what comes after a reconnection is everything
source.onerror = () => mark("connecting");

source.addEventListener("lab", (e) => buildLab(JSON.parse(e.data)));
source.addEventListener("state", (e) => {
  const state = JSON.parse(e.data);
  const fresh = state.run !== run;
  if (fresh) clearRows();
  run = state.run;
  document.getElementById("run").textContent = run;
  showControls(state);
  showLedgers(state);
  showWay(state, fresh);
  showLab(state);
  showWaiting(state);
});
source.addEventListener("rows", (e) => {
  const { run: of, rows } = JSON.parse(e.data);
  if (of === run) showRows(rows);
});

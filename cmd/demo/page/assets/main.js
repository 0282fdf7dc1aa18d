// The page's wiring: what the server tells goes to the parts, and nothing is counted here.
import { start as controls, show as showControls } from "./controls.js";
import { show as showLedgers } from "./ledgers.js";
import { show as showWay } from "./way.js";
import { build as buildLab, show as showLab } from "./lab.js";
import { waiting as showWaiting } from "./console.js";
import { start as views } from "./views.js";
import { show as showRows, clear as clearRows } from "./rows.js";
import { put } from "./words.js";

let run = "", drawn = "", state, drawing = false;
controls();
views();

const source = new EventSource("api/events");
const live = document.getElementById("live");
const mark = (state) => { live.dataset.state = live.textContent = state; };
source.onopen = () => { mark("live"); run = drawn = ""; }; // what comes after a reconnection is everything
source.onerror = () => mark("connecting");

source.addEventListener("lab", (e) => buildLab(JSON.parse(e.data)));
source.addEventListener("state", (e) => {
  state = JSON.parse(e.data);
  if (state.run !== run) clearRows();
  run = state.run;
  showRows(state.rows);
  if (!drawing) requestAnimationFrame(draw);
  drawing = true;
});

// draw shows the last state that came, once a frame at most.
function draw() {
  drawing = false;
  const fresh = drawn !== state.run;
  drawn = state.run;
  put("run", state.run);
  showControls(state);
  showLedgers(state);
  showWay(state, fresh);
  showLab(state);
  showWaiting(state);
}

// Commands to the page's own server. What it refuses is said aloud.
import { say } from "./words.js";

export async function post(path, body = {}) {
  const res = await fetch("api/" + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const text = (await res.text()).trim();
  if (!res.ok || text) say(text);
  return res.ok;
}

export async function get(path) {
  const res = await fetch("api/" + path);
  if (res.ok) return res.json();
  say((await res.text()).trim());
  return null;
}

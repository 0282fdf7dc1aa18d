// How numbers are written.
const money = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
const whole = new Intl.NumberFormat("en-US");

export const dollars = (cents) => money.format(cents / 100);
export const count = (n) => whole.format(n);
export const many = (n, one, more = one + "s") => `${count(n)} ${n === 1 ? one : more}`;

// put writes a text where it is another one: an unchanged node is not read out again.
export function put(id, text) {
  const node = document.getElementById(id);
  if (node.textContent !== text) node.textContent = text;
}

export function element(name, className, text = "") {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

// say tells what a visitor has to know at once, and takes it away again.
let silence;
export function say(text) {
  put("said", text);
  clearTimeout(silence);
  silence = setTimeout(() => put("said", ""), 6000);
}

// What was meant, beside what was charged.
import { count, dollars, many, put } from "./words.js";

export function show({ sums: s }) {
  put("meant", dollars(s.meant));
  put("meant-sub", s.intents === 0 ? "nobody yet" : many(s.intents, "intent") + (s.unknown ? `, ${count(s.unknown)} never heard` : ""));
  ledger("ledger", "charged", s.money, s.charges, s.twice, s.excess);
  put("charged-sub", s.charges === 0 ? "no charges" : `${many(s.charges, "charge")} for ${many(s.orders, "order")}`);
  ledger("naive-ledger", "naive", s.naiveMoney, s.naive, s.naiveTwice, s.naiveExcess);
  put("naive-sub", s.naive === 0 ? "no charges" : `${many(s.naive, "charge")} from the same stream`);
}

function ledger(card, id, money, charges, twice, excess) {
  put(id, dollars(money));
  document.getElementById(card).classList.toggle("twice", twice > 0);
  put(id === "charged" ? "excess" : "naive-excess", twice > 0 ? `${dollars(excess)} too much: ${many(twice, "charge")} too many` : "nobody twice");
}

// Keys and refreshing; every page is complete without this file.
const rows = () => [...document.querySelectorAll("summary.row, tr.row")];
const target = (row) => (row.matches("summary") ? row : row.querySelector("a"));
const current = () => rows().findIndex((row) => row.contains(document.activeElement));

function go(row, open) {
  if (!row) return;
  if (open && row.matches("summary")) row.parentElement.open = true;
  target(row).focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

const actions = {
  j: () => go(rows()[Math.min(current() + 1, rows().length - 1)]),
  k: () => go(rows()[Math.max(current() - 1, 0)]),
  e: () => {
    const all = rows();
    const order = [...all.slice(current() + 1), ...all.slice(0, current() + 1)];
    go(order.find((row) => row.closest(".problem")), true);
  },
  "/": () => document.querySelector("#q")?.focus(),
  "?": () => {
    const keys = document.querySelector("#keys");
    keys.open = !keys.open;
    keys.querySelector("summary").focus();
  },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  const action = actions[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

// ?call=… without a fragment: bring the call into sight.
if (!location.hash) document.querySelector(".call.selected")?.scrollIntoView({ block: "center" });

// A running run is reloaded every two seconds, with what the reader had opened; not while hidden or selecting text.
const kept = `open:${location.pathname}`;
const calls = () => [...document.querySelectorAll(".call")];
try {
  const saved = JSON.parse(sessionStorage.getItem(kept) ?? "null");
  sessionStorage.removeItem(kept);
  if (saved) for (const call of calls()) if (call.id in saved) call.querySelector("details").open = saved[call.id];
} catch {
  // storage can be forbidden; then everything starts closed again
}
if (document.body.dataset.state === "running") {
  setInterval(() => {
    if (document.hidden || String(getSelection()) || document.activeElement?.matches("input")) return;
    try {
      const open = Object.fromEntries(calls().map((call) => [call.id, call.querySelector("details").open]));
      sessionStorage.setItem(kept, JSON.stringify(open));
    } catch {
      // as above
    }
    location.reload();
  }, 2000);
}

// Keeps an open page up to date, and shows times in the viewer's zone. Everything works without it, but for these two.
"use strict";
(() => {
  const EVERY = 30000;
  const local = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" });
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

  function times(root) {
    for (const time of root.querySelectorAll("time")) {
      const shown = local.format(new Date(time.dateTime));
      if (time.className === "at") time.textContent = shown;
      else if (!time.title.includes("(")) time.title = `${shown} (${time.title})`;
    }
    const note = document.querySelector(".zone");
    if (note) note.textContent = zone === "UTC" ? "Times are in UTC." : `Times are in ${zone}; point at one to see UTC.`;
  }

  function warn(text) {
    let bar = document.querySelector(".stale");
    if (!text) { if (bar) bar.remove(); return; }
    if (!bar) {
      bar = document.createElement("div");
      bar.className = "stale";
      bar.setAttribute("role", "status");
      document.body.prepend(bar);
    }
    bar.textContent = text;
  }

  let updated = new Date();
  async function refresh() {
    const main = document.querySelector("main");
    const focused = document.activeElement;
    // Whoever fills in a form is not disturbed.
    if (document.hidden || (main.contains(focused) && focused.matches("input, select"))) return;
    try {
      const response = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (response.redirected) { location.reload(); return; }
      if (!response.ok) throw new Error(response.status);
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const next = page.querySelector("main");
      const href = focused instanceof HTMLAnchorElement && main.contains(focused) ? focused.getAttribute("href") : null;
      const places = [...main.querySelectorAll(".scroll, .runs")].map((part) => part.scrollLeft);
      times(next);
      main.replaceChildren(...next.childNodes);
      main.querySelectorAll(".scroll, .runs").forEach((part, n) => { part.scrollLeft = places[n] || 0; });
      if (href) [...main.querySelectorAll("a")].find((a) => a.getAttribute("href") === href)?.focus({ preventScroll: true });
      updated = new Date();
      warn("");
    } catch {
      warn(`Not updated since ${local.format(updated)}: the server does not answer.`);
    }
  }

  times(document);
  if ("still" in document.body.dataset) return;
  setInterval(refresh, EVERY);
  document.addEventListener("visibilitychange", () => { if (new Date() - updated > EVERY) refresh(); });
})();

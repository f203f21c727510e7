// Shows a page anew while something on it goes on: main[data-live] says after how many seconds. Nothing is lost to who
// reads, types or has opened something meanwhile.
"use strict";
(() => {
  const isBusy = (main) => {
    const active = document.activeElement;
    const selected = String(document.getSelection() || "");
    return selected !== "" || main.querySelector("details[open]") !== null
      || (active && active !== main && main.contains(active) && active.matches("input, select, textarea"));
  };
  const again = () => {
    const main = document.querySelector("main[data-live]");
    if (main) setTimeout(() => show(main), Number(main.dataset.live) * 1000);
  };
  const show = async (main) => {
    try {
      if (!document.hidden && !isBusy(main)) {
        const answer = await fetch(location.href, { credentials: "same-origin", redirect: "error" });
        if (answer.ok) {
          const page = new DOMParser().parseFromString(await answer.text(), "text/html");
          const fresh = page.querySelector("main");
          if (fresh && !isBusy(main)) {
            const place = [...main.querySelectorAll("a, button")].indexOf(document.activeElement);
            main.replaceWith(fresh);
            if (place >= 0) fresh.querySelectorAll("a, button")[place]?.focus();
          }
        }
      }
    } catch {
      // The daemon is away; it is asked again.
    }
    again();
  };
  again();
})();

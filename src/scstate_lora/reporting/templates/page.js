"use strict";
// Without scripts the page is complete: tables stay in their order, and words lead to the glossary.
(() => {
  const number = (text) => { const n = parseFloat(text.replace(/,/g, "")); return Number.isNaN(n) ? null : n; };
  for (const table of document.querySelectorAll("table:not(.overview table)")) {
    const body = table.tBodies[0];
    if (body.rows.length < 6) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.className = "sort";
      button.type = "button";
      button.textContent = "↕";
      button.setAttribute("aria-label", "Sort by " + head.textContent);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        const numeric = head.classList.contains("number");
        const value = (row) => { const text = row.cells[column].textContent; return numeric ? number(text) : text; };
        const rows = [...body.rows].map((row) => ({ row, value: value(row) }));
        rows.sort((a, b) => {
          if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
          const order = numeric ? a.value - b.value : a.value.localeCompare(b.value, undefined, { numeric: true });
          return down ? -order : order;
        });
        for (const other of table.tHead.rows[0].cells) {
          other.removeAttribute("aria-sort");
          other.querySelector(".sort").textContent = "↕";
        }
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        button.textContent = down ? "↓" : "↑";
        body.append(...rows.map(({ row }) => row));
      });
      head.append(" ", button);
    });
  }

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  let shown = null;
  const hide = () => { tip.hidden = true; shown = null; };
  const show = (term) => {
    tip.textContent = term.dataset.meaning;
    tip.hidden = false;
    shown = term;
    const place = term.getBoundingClientRect();
    const left = Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 12);
    const below = place.bottom + 6;
    tip.style.left = Math.max(12, left) + "px";
    tip.style.top = (below + tip.offsetHeight < window.innerHeight ? below : place.top - tip.offsetHeight - 6) + "px";
  };
  for (const term of document.querySelectorAll("a.term")) {
    term.dataset.meaning = term.title; // the browser's own tip would cover this one
    term.setAttribute("aria-description", term.title);
    term.removeAttribute("title");
    let touched = false;
    term.addEventListener("pointerdown", (event) => { touched = event.pointerType !== "mouse" && shown !== term; });
    term.addEventListener("mouseenter", () => show(term));
    term.addEventListener("focus", () => show(term));
    term.addEventListener("mouseleave", hide);
    term.addEventListener("blur", hide);
    // The first tap explains, the second follows the link.
    term.addEventListener("click", (event) => { if (touched) { event.preventDefault(); touched = false; show(term); } });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("scroll", hide, { capture: true, passive: true });

  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details.section")) part.open = true; });
})();

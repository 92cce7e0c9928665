/* What the server cannot do: the theme toggle, the J and K keys, closing a toast, and where focus goes after a swap.
   Everything else is plain GET and POST, with htmx on top. */
(() => {
  "use strict";
  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];

  const toggle = $("[data-theme-toggle]");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const tell = () => toggle?.setAttribute("aria-pressed", String(shown() === "dark"));
  if (toggle) {
    toggle.hidden = false;
    tell();
    dark.addEventListener("change", tell);
    toggle.addEventListener("click", () => {
      const next = shown() === "dark" ? "light" : "dark";
      document.documentElement.dataset.theme = next;
      try { localStorage.setItem("theme", next); } catch { /* storage may be closed */ }
      tell();
    });
  }

  /* J and K work only while focus is inside the docket (WCAG 2.1.4). Listening above it survives its being swapped. */
  document.addEventListener("keydown", (event) => {
    const docket = event.target.closest?.("[data-docket]");
    const step = { j: 1, k: -1 }[event.key.toLowerCase()];
    if (!docket || !step || event.ctrlKey || event.metaKey || event.altKey) return;
    const cases = $$(".case__name a", docket);
    const at = cases.findIndex((link) => link.closest(".case").contains(document.activeElement));
    cases[Math.min(Math.max(at + step, 0), cases.length - 1)]?.focus();
  });

  document.addEventListener("click", (event) => {
    event.target.closest("[data-dismiss]")?.closest(".toast")?.remove();
  });

  /* After an answer was refused or taken in place, focus goes to what changed: the field in error, else the heading. */
  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.detail.target?.id !== "decide") return;
    const swapped = $("#decide");
    ($("[aria-invalid='true']", swapped) || $("[data-focus]", swapped))?.focus();
  });

  /* A form that could not be taken, because the session has ended, goes the way it goes without htmx: the answer is a page that
     keeps what was typed. */
  document.addEventListener("htmx:responseError", (event) => {
    const form = event.detail.requestConfig.elt;
    if ([401, 403].includes(event.detail.xhr.status) && form.matches("form[method=post]")) form.submit();
  });

  const print = $("[data-print]");
  if (print) {
    print.hidden = false;
    print.addEventListener("click", () => window.print());
  }
})();

/* Loaded before the first paint, so that a chosen theme never flashes. The Django admin keeps its choice under the same name. */
(() => {
  "use strict";
  let kept = null;
  try { kept = localStorage.getItem("theme"); } catch { /* storage may be closed: follow the system */ }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();

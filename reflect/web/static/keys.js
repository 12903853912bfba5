// Keyboard: j and k select a row, Enter opens it, a letter presses the button of the selected row that has it.
"use strict";
(function () {
  function rows() { return Array.from(document.querySelectorAll("[data-row]")); }
  function selected() { return document.querySelector("[data-row].selected"); }
  function select(row) {
    rows().forEach(function (other) { other.classList.toggle("selected", other === row); });
    row.scrollIntoView({ block: "nearest" });
    const link = row.querySelector("a");
    if (link) link.focus({ preventScroll: true });
  }
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select")) return;
    if (event.key === "/") {
      const field = document.getElementById("q");
      if (field) { event.preventDefault(); field.focus(); }
      return;
    }
    const every = rows();
    const at = every.indexOf(selected());
    if (event.key === "j" || event.key === "k") {
      const next = every[event.key === "j" ? Math.min(at + 1, every.length - 1) : Math.max(at - 1, 0)];
      if (next) { event.preventDefault(); select(next); }
      return;
    }
    if (!/^[aerpu]$/.test(event.key) || at < 0) return;
    const key = '[data-key="' + event.key + '"]';
    const button = every[at].querySelector(key) || (event.key === "e" ? document.querySelector(key) : null);
    if (button) {
      event.preventDefault();
      button.click();
      const field = event.key === "e" && document.querySelector("[data-edit] input:not([type=hidden])");
      if (field) field.focus();
    } else if (event.key === "e") {
      const link = every[at].getAttribute("data-row");
      if (link) window.location.assign(link);
    }
  });
})();

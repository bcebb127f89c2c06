// What the pages need beside htmx: the scanner's focus, the dialog, and a clear sign
// when the stream is cut. Everything else works without scripts.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const isField = (e) => e && (e.matches("input, select, textarea, [contenteditable]"));

  // Scanner: a keyboard that types fast and ends with Enter or Tab.
  const scan = () => byId("scan");
  const rest = () => {
    const f = scan();
    const open = byId("dialog");
    if (f && !(open && open.open) && (!document.activeElement || document.activeElement === document.body)) {
      f.focus({ preventScroll: true });
    }
  };
  document.addEventListener("keydown", (e) => {
    const f = scan();
    const wedge = e.target.matches && e.target.matches("#scan, [data-wedge]");
    if (wedge && e.key === "Tab" && e.target.value !== "" && !e.shiftKey) {
      e.preventDefault();
      e.target.form.requestSubmit();
      return;
    }
    // What is typed while nothing wants it is a scan.
    if (f && e.key.length === 1 && !e.ctrlKey && !e.altKey && !e.metaKey && !isField(e.target) &&
        !(byId("dialog") && byId("dialog").open) && !(e.key === " " && e.target.matches("a, button, summary"))) {
      f.focus({ preventScroll: true });
    }
  });
  document.addEventListener("click", () => setTimeout(rest, 0));
  document.addEventListener("focusout", () => setTimeout(rest, 0));
  window.addEventListener("focus", rest);
  // A finger on the field wants the keyboard of the tablet; a scanner does not.
  document.addEventListener("pointerdown", (e) => {
    const f = scan();
    if (f) f.inputMode = e.target === f ? "text" : "none";
  });

  document.addEventListener("htmx:configRequest", (e) => {
    if (e.target.id === "scan-form") {
      // The values are taken: the next scan may come.
      scan().value = "";
    }
  });

  // Messages go by themselves; what went wrong stays longer.
  let fade = 0;
  const later = () => {
    const m = byId("message");
    clearTimeout(fade);
    if (m && m.firstElementChild) {
      fade = setTimeout(() => m.replaceChildren(), m.querySelector(".bad") ? 15000 : 5000);
    }
  };

  // Dialog: the server's question.
  document.addEventListener("htmx:afterSwap", (e) => {
    if (e.target.id === "dialog" && !e.target.open) e.target.showModal();
    if (e.target.id === "message") later();
  });
  document.addEventListener("provisiond:close", () => {
    const d = byId("dialog");
    if (d && d.open) d.close();
    rest();
  });
  document.addEventListener("click", (e) => {
    const close = e.target.closest("[data-close]");
    const d = byId("dialog");
    if (close && d && d.open) {
      e.preventDefault();
      d.close();
      rest();
    }
  });

  // The stream: what is shown may be old while it is cut.
  const stale = (yes) => {
    const o = byId("offline");
    if (o) o.hidden = !yes;
    document.body.classList.toggle("stale", yes);
  };
  let cut = 0;
  document.addEventListener("htmx:sseError", () => {
    if (!cut) cut = setTimeout(() => stale(true), 1500);
  });
  document.addEventListener("htmx:sseOpen", (e) => {
    clearTimeout(cut);
    cut = 0;
    stale(false);
    const source = e.detail.source;
    if (!source.provisiond) {
      source.provisiond = true;
      source.addEventListener("reload", () => location.reload());
    }
  });
  document.addEventListener("htmx:sendError", () => stale(true));
  document.addEventListener("DOMContentLoaded", () => { later(); rest(); });
})();

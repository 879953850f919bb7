// Refreshes what the server drew. Without this script every page still works.
"use strict";
(() => {
  const body = document.body, live = document.getElementById("live");
  if (!live) return;
  let due = 0;

  // Somebody who types or has opened a form is not interrupted.
  const busy = () => {
    const a = document.activeElement;
    return a && a.closest("form") && a.tagName !== "BUTTON" || document.querySelector("main details[open] form");
  };

  const redraw = async () => {
    due = 0;
    if (busy()) { live.textContent = "· there is news: reload to see it"; return; }
    const r = await fetch(location.href, {headers: {Accept: "text/html"}}).catch(() => null);
    if (!r) return;
    if (r.status === 401) { location.reload(); return; }
    const watched = document.querySelector("#console.on");
    const doc = new DOMParser().parseFromString(await r.text(), "text/html");
    for (const q of ["main", "header nav"]) {
      const now = document.querySelector(q), next = doc.querySelector(q);
      if (now && next) now.replaceChildren(...next.childNodes);
    }
    const drawn = document.getElementById("console");
    if (watched && drawn) drawn.replaceWith(watched); // what runs goes on
    else consoleReady();
    live.textContent = "· live";
  };

  const size = b => {
    for (const u of ["B", "KiB", "MiB", "GiB"]) { if (b < 1024) return b.toFixed(b < 10 ? 1 : 0) + " " + u; b /= 1024; }
    return b.toFixed(1) + " TiB";
  };

  const stream = new EventSource("/api/v1/events?after=" + (body.dataset.seq || 0));
  stream.onopen = () => { live.textContent = "· live"; };
  stream.onerror = () => { live.textContent = "· no connection, trying again"; };
  stream.addEventListener("event", () => { if (!due) due = setTimeout(redraw, 1000); });
  stream.addEventListener("progress", e => {
    const p = JSON.parse(e.data);
    for (const el of document.querySelectorAll('.progress[data-node="' + CSS.escape(p.node) + '"]')) {
      el.hidden = false;
      el.querySelector("progress").value = p.done;
      el.querySelector("span").textContent = Math.round(p.done * 100) + " % " + p.doing + (p.rate ? " · " + size(p.rate) + "/s" : "");
    }
  });

  // The console of a machine: the server has cleaned its text, and it is only
  // ever set as text.
  const consoleLines = 500, consoleText = 65536; // a line need not end
  const consoleReady = () => {
    const box = document.getElementById("console");
    if (!box) return;
    const pre = box.querySelector("pre"), button = box.querySelector(".live"), state = box.querySelector(".state");
    pre.scrollTop = pre.scrollHeight;
    button.hidden = false;
    let source = null;
    button.onclick = () => {
      if (source) { source.close(); source = null; box.classList.remove("on"); button.textContent = "Live"; return; }
      box.classList.add("on");
      button.textContent = "Stop";
      source = new EventSource("/api/v1/nodes/" + encodeURIComponent(box.dataset.node) + "/console?after=" + box.dataset.seq);
      source.addEventListener("console", e => {
        const c = JSON.parse(e.data), end = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 8;
        if (c.seq) box.dataset.seq = c.seq;
        const text = pre.textContent + (c.mark ? "-- smelt: " + c.text + " --\n" : c.text || "");
        pre.textContent = text.split("\n").slice(-consoleLines).join("\n").slice(-consoleText);
        if (end) pre.scrollTop = pre.scrollHeight;
      });
      source.addEventListener("state", e => { const s = JSON.parse(e.data); state.textContent = s.is + (s.why ? ": " + s.why : "") + (s.typing ? "; " + s.typing + " types" : ""); });
      source.onerror = () => { state.textContent = "no connection, trying again"; };
    };
  };
  consoleReady();

  // A second press of the same button must not ask twice.
  document.addEventListener("submit", e => {
    const b = e.submitter;
    setTimeout(() => { if (b) { b.disabled = true; b.textContent = "Sending…"; } }, 0);
  });
})();

// What scripts add to pages that work without them: the audit as it grows, a button that copies, and
// a file that fills a field. The file itself is never sent.
"use strict";

const ROWS_MAX = 200;
const FILE_MAX = 65536;

// Text only: what clients wrote never becomes markup.
function cell(row, text, href) {
  const made = row.insertCell();
  if (href && text) {
    const link = document.createElement("a");
    link.href = href + encodeURIComponent(text);
    link.textContent = text;
    made.append(link);
  } else {
    made.textContent = text || "\u2013";
  }
  return made;
}

function show(body, fact) {
  body.querySelector(".none")?.closest("tr").remove();
  const row = body.insertRow(0);
  row.className = "fresh";
  const time = document.createElement("time");
  time.dateTime = fact.time;
  time.textContent = fact.time.slice(0, 10) + " " + fact.time.slice(11, 19) + " UTC";
  row.insertCell().append(time);
  cell(row, fact.kind);
  cell(row, fact.decision);
  cell(row, fact.code);
  cell(row, fact.amount).className = "number";
  cell(row, fact.customer_id);
  cell(row, fact.operation_id, "/operations/");
  cell(row, fact.key_id, "/keys/");
  cell(row, fact.agent_id);
  cell(row, fact.method ? fact.method + " " + (fact.path || "") : null).className = "request";
  cell(row, fact.note);
  while (body.rows.length > ROWS_MAX) body.deleteRow(-1);
}

function follow(panel, body) {
  const state = panel.querySelector("[data-live-state]");
  const button = panel.querySelector("button");
  let source = null;
  const say = (text, kind) => {
    state.textContent = text;
    panel.className = "live " + kind;
  };
  const start = () => {
    source = new EventSource(panel.dataset.live);
    source.onopen = () => say("Following", "on");
    source.onmessage = (event) => show(body, JSON.parse(event.data));
    source.onerror = () => say(source.readyState === 2 ? "Ended: reload the page" : "Reconnecting", "lost");
    button.textContent = "Pause";
  };
  button.addEventListener("click", () => {
    if (source) {
      source.close();
      source = null;
      say("Paused", "paused");
      button.textContent = "Follow";
    } else {
      start();
    }
  });
  panel.hidden = false;
  start();
}

const panel = document.querySelector("[data-live]");
const body = document.querySelector("[data-tail]");
if (panel && body) follow(panel, body);

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

for (const chooser of document.querySelectorAll("[data-file-for]")) {
  chooser.hidden = false;
  chooser.querySelector("input").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) document.getElementById(chooser.dataset.fileFor).value = await file.slice(0, FILE_MAX).text();
  });
}

// What scripts add to pages that work without them: the audit as it grows, a button that copies, and
// a file that fills a field. The file itself is never sent.
"use strict";

const ROWS_MAX = 200;
const FILE_MAX = 65536;

// The store's time, which need not be the browser's.
const AHEAD = document.body.dataset.now ? Number(document.body.dataset.now) - Date.now() : 0;
const UNITS = [[86400, "day"], [3600, "hour"], [60, "minute"]];

function ago(time) {
  const seconds = Math.floor((Date.now() + AHEAD - Date.parse(time)) / 1000);
  const away = Math.abs(seconds);
  for (const [size, unit] of UNITS) {
    if (away < size) continue;
    const count = Math.floor(away / size) + " " + unit + (away >= 2 * size ? "s" : "");
    return seconds > 0 ? count + " ago" : "in " + count;
  }
  return seconds >= 0 ? "just now" : "in a moment";
}

// Text only: what clients wrote never becomes markup.
function made(tag, text, kind) {
  const element = document.createElement(tag);
  element.textContent = text || "\u2013";
  if (kind) element.className = kind;
  return element;
}

function link(text, href, kind) {
  const element = made("a", text, kind);
  element.href = href;
  return element;
}

function cell(row, label, first, second) {
  const place = row.insertCell();
  place.dataset.label = label;
  place.append(first);
  if (second) {
    const small = document.createElement("small");
    small.append(second);
    place.append(small);
  }
  return place;
}

// The row of the macro `audit` in macros.html.
function show(body, fact) {
  body.querySelector(".none")?.closest("tr").remove();
  const row = body.insertRow(0);
  row.className = "fresh";
  const time = made("time", ago(fact.time));
  time.dateTime = fact.time;
  time.title = fact.time.slice(0, 10) + " " + fact.time.slice(11, 19) + " UTC";
  cell(row, "Time", time);
  cell(row, "What", made("span", fact.decision || fact.kind, "state state-" + fact.decision), fact.code || fact.kind);
  cell(row, "Amount", fact.amount || "\u2013").className = fact.amount ? "number" : "number empty";
  const operation = fact.operation_id && link(fact.operation_id, "/operations/" + encodeURIComponent(fact.operation_id), "cut");
  cell(row, "About", made("span", fact.customer_id, "cut"), operation);
  const key = fact.key_id && link(fact.key || fact.key_id, "/keys/" + encodeURIComponent(fact.key_id));
  cell(row, "By", made("span", fact.agent_id, "cut"), key);
  cell(row, "Request", made("span", fact.method && fact.method + " " + (fact.path || ""), "cut wide-cut"), fact.note);
  while (body.rows.length > ROWS_MAX) body.deleteRow(-1);
}

setInterval(() => {
  for (const time of document.querySelectorAll("time[datetime]")) time.textContent = ago(time.dateTime);
}, 30000);

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

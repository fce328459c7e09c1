"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const percent = (value) => (value === null ? "-" : (100 * value).toFixed(1) + " %");

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

const byId = (id) => document.getElementById(id);

// Fill an element with a bar for each [name, share]; paint: names the colour of one's bar, by default all have the same.
function bars(parent, pairs, paint) {
  parent.replaceChildren();
  for (const [name, value] of pairs) {
    const row = element("div", undefined, parent);
    row.className = "row";
    element("span", name, row);
    const track = element("div", undefined, row);
    track.className = "track";
    const bar = element("i", undefined, track);
    bar.style.width = 100 * value + "%";
    if (paint) bar.style.background = paint(name);
    element("span", percent(value), row);
  }
}

"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const percent = (value) => (value === null ? "-" : (100 * value).toFixed(1) + " %");

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

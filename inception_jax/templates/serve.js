"use strict";
const most = {{ limits.max_mb }} * 1e6, gradCam = {{ grad_cam|tojson }};
const atOnce = 4;  // requests, so that large pictures do not wait for all others to be sent
const element = id => document.getElementById(id);
const make = (name, properties) => Object.assign(document.createElement(name), properties);
let current = new AbortController();

function fail(text) {
  element("error").append(make("div", {textContent: text}));
  element("error").hidden = false;
}

async function ask(file, query, signal) {
  const response = await fetch("predict?" + new URLSearchParams(query), {method: "POST", body: file, signal{{ ', headers: {Authorization: "Bearer " + element("token").value}'|safe if token }}});
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  answer.milliseconds = /dur=([0-9.]+)/.exec(response.headers.get("Server-Timing"))[1];
  return answer;
}

function reason(error) {  // fetch raises a TypeError where there is no answer, and JSON a SyntaxError
  return error instanceof TypeError || error instanceof SyntaxError ? "the server is not responding" : error.message;
}

function showEvidence(card, name, answer) {
  card.querySelector("[data-of]").textContent = name;
  card.querySelector("[data-heat]").src = answer.grad_cam;
  card.querySelector("[data-heat]").hidden = false;
  for (const button of card.querySelectorAll("button")) button.setAttribute("aria-pressed", button.value === name);
}

async function chooseEvidence(card, file, name, signal) {
  try {
    showEvidence(card, name, await ask(file, {top: 1, grad_cam: 1, class: name}, signal));
  } catch (error) {
    if (!signal.aborted) fail(`${file.name}: ${reason(error)}`);
  }
}

function showClasses(card, file, answer, signal) {
  card.querySelector(".classes").replaceChildren(...answer.classes.map(({name, probability}) => {
    const item = make("li"), bar = make("div", {className: "meter"}), filled = make("div");
    const label = gradCam ? make("button", {type: "button", value: name, title: "Show the evidence for this class"}) : make("div");
    label.className = "label";
    label.append(make("span", {textContent: name}), make("span", {textContent: (100 * probability).toFixed(1) + " %"}));
    if (gradCam) label.addEventListener("click", () => chooseEvidence(card, file, name, signal));
    filled.style.width = 100 * probability + "%";
    bar.append(filled);
    item.append(label, bar);
    return item;
  }));
  const took = `${answer.milliseconds} ms`;
  card.querySelector("p").textContent = gradCam ? `${took}; choose a class to see the evidence for it` : took;
  if (gradCam) showEvidence(card, answer.classes[0].name, answer);
  card.classList.remove("busy");
}

function makeCard(file) {
  const card = document.querySelector("template").content.cloneNode(true).firstElementChild;
  card.querySelector("[data-name]").textContent = file.name;
  const given = card.querySelector("[data-given]");
  given.addEventListener("load", () => given.classList.toggle("squares", given.naturalWidth < 64));
  given.src = URL.createObjectURL(file);
  element("results").append(card);
  return card;
}

async function classify(card, file, signal) {
  try {
    showClasses(card, file, await ask(file, gradCam ? {top: 5, grad_cam: 1} : {top: 5}, signal), signal);
  } catch (error) {
    if (signal.aborted) return;
    card.remove();
    fail(`${file.name}: ${reason(error)}`);
  }
}

async function classifyAll(files) {
  if (!files.length) return;
  current.abort();
  current = new AbortController();
  const signal = current.signal;
  for (const image of document.querySelectorAll("[data-given]")) URL.revokeObjectURL(image.src);
  element("results").replaceChildren();
  element("error").replaceChildren();
  element("error").hidden = true;
  const small = files.filter(file => file.size <= most);
  for (const {name, size} of files.filter(file => file.size > most)) {
    fail(`${name} has ${(size / 1e6).toFixed(1)} MB; at most ${most / 1e6} are allowed.`);
  }
  const waiting = small.map(file => [makeCard(file), file]);
  const work = async () => { while (waiting.length) await classify(...waiting.shift(), signal); };
  await Promise.all(Array.from({length: atOnce}, work));
}

element("picture").addEventListener("change", event => {
  classifyAll([...event.target.files]);
  event.target.value = "";  // the same file may be chosen again
});
document.addEventListener("paste", event => classifyAll([...event.clipboardData.files]));
document.addEventListener("dragover", event => { event.preventDefault(); element("drop").classList.add("over"); });
document.addEventListener("dragleave", () => element("drop").classList.remove("over"));
document.addEventListener("drop", event => {
  event.preventDefault();
  element("drop").classList.remove("over");
  classifyAll([...event.dataTransfer.files]);
});
for (const button of document.querySelectorAll("#examples button")) {
  const image = button.firstElementChild;
  button.addEventListener("click", async () => {
    const content = await (await fetch(image.src)).blob();
    classifyAll([new File([content], `example of ${image.alt}`)]);
  });
}

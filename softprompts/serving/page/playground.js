"use strict";
// Whatever comes from texts, prompts or the server goes in as text, never as markup.

const at = (id) => document.getElementById(id);
const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};

let prompts = [];
let key = "";
let asking = null;
let shown = null; // what the answers on the page were asked with
const MOST_LABELS = 6;

async function call(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const content = await answer.json().catch(() => ({}));
  if (answer.status === 401) at("key-part").hidden = false;
  if (!answer.ok) throw new Error(content.error || `the server answered ${answer.status}`);
  return content;
}

function chosen() {
  const names = new Set([...document.querySelectorAll("#prompts input:checked")].map((box) => box.value));
  return prompts.filter((prompt) => names.has(prompt.name));
}

// Only what one of the chosen prompts reads is shown.
function arrange() {
  const own = chosen();
  at("pair-part").hidden = !own.some((prompt) => prompt.fields.length === 2);
  at("choices-part").hidden = !own.some((prompt) => brings(prompt));
  at("ask").disabled = !own.some((prompt) => prompt.kind) || asking !== null;
  at("write").disabled = !own.length || asking !== null;
  const names = new Set(own.filter((prompt) => prompt.fields.length > 2).flatMap((prompt) => prompt.fields));
  const part = at("fields-part");
  for (const old of [...part.children]) if (!names.has(old.dataset.field)) old.remove();
  for (const name of names) {
    if ([...part.children].some((child) => child.dataset.field === name)) continue;
    const box = make("div", undefined, "part");
    const label = make("label", `Field ${name}`);
    const area = make("textarea");
    box.dataset.field = name;
    area.rows = 2;
    area.id = label.htmlFor = `field-${part.children.length}-${Date.now()}`;
    box.append(label, area);
    part.append(box);
  }
  part.hidden = !names.size;
}

const brings = (prompt) => ["choice", "ranking"].includes(prompt.kind) && prompt.fields.length < 3;

function list(found) {
  prompts = found.prompts.filter((prompt) => prompt.loaded);
  const box = at("prompts");
  box.replaceChildren();
  for (const prompt of prompts) {
    const label = make("label");
    const input = make("input");
    input.type = "checkbox";
    input.value = prompt.name;
    input.checked = prompts.length <= 4;
    const told = make("span", prompt.name);
    told.append(make("small", [prompt.method, prompt.task, prompt.kind].filter(Boolean).join(" · ")), make("small", tells(prompt)));
    label.append(input, told);
    box.append(label);
  }
  for (const prompt of found.prompts.filter((one) => !one.loaded))
    box.append(make("p", `${prompt.name} is left out: ${prompt.error}`, "off"));
  at("none").textContent = prompts.length ? "" : "No prompt is loaded.";
  at("none").hidden = prompts.length > 0;
  at("all-part").hidden = prompts.length < 2;
  at("write-part").hidden = found.kind === "encoder";
  at("about").textContent = `${prompts.length} ${prompts.length === 1 ? "prompt" : "prompts"} on the frozen ${found.model}, side by side and in one pass.`;
  arrange();
}

// What a prompt tells: the column that it was trained on, and the first of its labels.
function tells(prompt) {
  const names = prompt.labels.slice(0, MOST_LABELS);
  const more = prompt.labels.length - names.length;
  const labels = names.join(", ") + (more > 0 ? ` and ${more} more` : "");
  return [prompt.column && `column “${prompt.column}”`, labels].filter(Boolean).join(": ");
}

function row(prompt) {
  const text = at("text").value;
  if (prompt.kind === "tagging" || prompt.fields.length < 2) {
    const more = brings(prompt) ? { choices: lines() } : {};
    return { prompt: prompt.name, text, ...more };
  }
  if (prompt.fields.length > 2) {
    const fields = Object.fromEntries([...at("fields-part").children].map((box) => [box.dataset.field, box.querySelector("textarea").value]));
    return { prompt: prompt.name, fields: Object.fromEntries(prompt.fields.map((name) => [name, fields[name] || ""])) };
  }
  const more = brings(prompt) ? { choices: lines() } : {};
  return { prompt: prompt.name, text, text_pair: at("pair").value, ...more };
}

const lines = () => at("choices").value.split("\n").map((line) => line.trim()).filter(Boolean);

function card(prompt) {
  const box = make("article", undefined, "card");
  box.append(make("h3", prompt.name), make("small", [prompt.method, prompt.column || prompt.task].filter(Boolean).join(" · ")));
  return box;
}

function show(prompt, answer) {
  const box = card(prompt);
  if (answer.error) {
    box.append(make("p", answer.error, "bad"));
    return box;
  }
  if (answer.tags) {
    const words = make("p", undefined, "tags");
    at("text").value.trim().split(/\s+/).forEach((word, index) => {
      const tag = answer.tags[index];
      if (index) words.append(" ");
      if (!tag || tag === "O") words.append(word);
      else {
        const mark = make("mark", `${word} `);
        mark.append(make("small", tag));
        words.append(mark);
      }
    });
    box.append(words, ...cutMark(prompt, answer));
    return box;
  }
  const label = answer.text !== undefined ? answer.text : answer.label;
  box.append(make("p", label || "(nothing)", label.length > 40 ? "label long" : "label"));
  if (answer.probabilities) {
    const chances = make("dl", undefined, "chances");
    const sorted = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
    for (const [name, chance] of sorted.slice(0, 8)) {
      const bar = make("meter");
      bar.value = chance;
      bar.setAttribute("aria-hidden", "true");
      const middle = make("dd");
      middle.append(bar);
      chances.append(make("dt", name), middle, make("dd", chance.toFixed(3)));
    }
    box.append(chances);
    if (sorted.length > 8) box.append(make("small", `and ${sorted.length - 8} more`));
  }
  box.append(...cutMark(prompt, answer));
  return box;
}

// Says where something is not whole: the text that was read, or the one that was written.
function cutMark(prompt, answer) {
  const note = make("p", undefined, "cut");
  if (answer.cut) {
    const most = prompt.max_length ? `at most ${prompt.max_length} tokens` : "less than this text";
    note.append(make("b", "Text cut: "), `this prompt reads ${most}, so the answer is for the beginning.`);
  } else if (answer.finish === "length") {
    note.append(make("b", "Not finished: "), `it stopped at ${answer.tokens} tokens, the most that were asked for or fit.`);
  } else return [];
  return [note];
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The key itself stays out of the clipboard.
function asCurl(path, body) {
  const secret = key ? ' -H "Authorization: Bearer $SOFTPROMPTS_API_KEY"' : "";
  const address = quoted(new URL(path, document.baseURI).href);
  return `curl ${address} -H 'Content-Type: application/json'${secret} -d ${quoted(JSON.stringify(body))}`;
}

async function ask(path, own, more) {
  const began = performance.now();
  const body = (some) => ({ inputs: some.map(row), ...more });
  const one = async (some) => call(path, body(some)).then((found) => found.answers);
  shown = asCurl(path, body(own));
  at("problem").textContent = "";
  at("state").textContent = "Asking.";
  asking = own;
  arrange();
  try {
    let answers;
    try {
      answers = await one(own);
    } catch (error) {
      if (own.length === 1) throw error;
      // One prompt that does not read the text is not to hide what the others say.
      answers = await Promise.all(own.map((prompt) => one([prompt]).then((found) => found[0], (problem) => ({ error: problem.message }))));
    }
    at("results").replaceChildren(...own.map((prompt, index) => show(prompt, answers[index])));
    at("curl").textContent = shown;
    at("copied").textContent = "";
    at("curl-part").hidden = false;
    at("state").textContent = `${own.length} ${own.length === 1 ? "answer" : "answers"} in ${Math.round(performance.now() - began)} ms`;
  } catch (error) {
    at("state").textContent = "";
    at("problem").textContent = error.message;
  } finally {
    asking = null;
    arrange();
  }
}

async function start() {
  at("problem").textContent = "";
  try {
    list(await call("v1/prompts"));
  } catch (error) {
    at("none").textContent = "The list of prompts could not be had.";
    at("problem").textContent = error.message;
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const own = chosen().filter((prompt) => prompt.kind);
  if (own.length && asking === null) ask("v1/predict", own, {});
});
at("write").addEventListener("click", () => {
  const wrong = [at("length"), at("temperature")].find((box) => !box.reportValidity() || box.value === "");
  if (!wrong) ask("v1/generate", chosen(), { max_new_tokens: at("length").valueAsNumber, temperature: at("temperature").valueAsNumber });
});
at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("curl").textContent);
    at("copied").textContent = "Copied.";
  } catch { // no clipboard without https or localhost
    getSelection().selectAllChildren(at("curl"));
    at("copied").textContent = "Selected: copy it with the keyboard.";
  }
});
at("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit(at("ask"));
});
at("prompts").addEventListener("change", arrange);
for (const [id, on] of [["all", true], ["clear", false]])
  at(id).addEventListener("click", () => {
    for (const box of document.querySelectorAll("#prompts input")) box.checked = on;
    arrange();
  });
at("unlock").addEventListener("click", () => {
  key = at("key").value.trim();
  start();
});

const theme = at("theme");
const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.hidden = false;
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  name();
});
name();
start();

// The pages work as plain links and forms; this adds what moves by itself, keys, votes and chat.
// Text of a run enters the page as text, or as HTML that the server has escaped.
"use strict";

const token = document.querySelector('meta[name="selfalign-token"]').content;

async function post(address, body) {
  const answer = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Selfalign-Token": token },
    body: JSON.stringify(body),
  });
  const kind = answer.headers.get("Content-Type") || "";
  const said = kind.startsWith("application/json") ? await answer.json() : {};
  if (!answer.ok) throw new Error(said.error || `The server refused this (${answer.status}); load the page again.`);
  return said;
}

// Parts that show where a run stands.
for (const part of document.querySelectorAll("[data-live]")) {
  let shown = null;
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(part.dataset.live);
      const text = await answer.text();
      if (!answer.ok || text === shown) return;
      const focused = document.activeElement?.getAttribute("href");
      const open = part.querySelector("details")?.open;
      part.innerHTML = text;
      shown = text;
      const details = part.querySelector("details");
      if (details && open !== undefined) details.open = open;
      if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    } catch {
      part.dataset.lost = "";  // the server has ended; the next try may find it again
    }
  }, 2000);
}

// Whole texts on demand.
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a.whole");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const answer = await fetch(link.href);
  if (!answer.ok) return void (link.textContent = "It can't be read; load the page again.");
  const place = link.closest("p").previousElementSibling;
  place.textContent = await answer.text();
  link.closest("p").remove();
});

// Filters: a choice applies at once, and empty fields stay out of the address.
for (const form of document.querySelectorAll("form.filter")) {
  for (const choice of form.querySelectorAll("select")) choice.addEventListener("change", () => form.requestSubmit());
  form.addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
  });
}

// Keys.
const isWriting = (target) => target.closest("input, select, textarea") !== null;
function step(by) {
  const rows = [...document.querySelectorAll("a.open")];
  const at = rows.indexOf(document.activeElement);
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + by, 0), rows.length - 1)];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}
const keys = {
  j: () => step(1),
  k: () => step(-1),
  n: () => document.querySelector('a[rel="next"]')?.click(),
  p: () => document.querySelector('a[rel="prev"]')?.click(),
  "/": () => document.querySelector('input[type="search"]')?.focus(),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isWriting(event.target)) return;
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

// Votes.
const ballot = document.querySelector(".ballot");
if (ballot) {
  const buttons = [...ballot.querySelectorAll("button")];
  const said = ballot.querySelector(".said");
  const vote = async (choice) => {
    if (buttons[0].disabled) return;
    for (const button of buttons) button.disabled = true;
    const { votes, one, other, prompt } = ballot.dataset;
    try {
      const whose = await post(votes, { one, other, prompt_id: prompt, choice });
      for (const side of ballot.querySelectorAll("[data-side]")) {
        side.querySelector(".whose").textContent = `by ${whose[side.dataset.side]}`;
        side.classList.toggle("preferred", side.dataset.side === choice);
      }
      said.textContent = `A is by ${whose.left}, B by ${whose.right}; your vote counts.`;
      ballot.querySelector(".choices").hidden = true;
      ballot.querySelector(".after").hidden = false;
      ballot.querySelector(".next").focus();
    } catch (error) {
      said.textContent = error.message;
      for (const button of buttons) button.disabled = false;
    }
  };
  for (const button of buttons) button.addEventListener("click", () => vote(button.dataset.choice));
  const choices = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isWriting(event.target) || !choices[event.key]) return;
    event.preventDefault();
    vote(choices[event.key]);
  });
}

// Chat.
const chat = document.querySelector("form.chat");
if (chat) {
  const turns = [];
  let seed = 0;
  const place = chat.querySelector(".turns");
  const said = chat.querySelector(".said");
  const [send, again] = [chat.querySelector("button"), chat.querySelector("[data-again]")];
  const show = (role, label, text) => {
    const turn = document.createElement("div");
    turn.className = `turn ${role}`;
    const who = document.createElement("h4");
    who.textContent = label;
    const what = document.createElement("div");
    what.className = "text";
    what.dir = "auto";
    what.textContent = text;
    turn.append(who, what);
    place.append(turn);
    turn.scrollIntoView({ block: "nearest" });
  };
  const ask = async () => {
    const { model, temperature, max_new_tokens, system } = chat.elements;
    const given = system.value.trim() ? [{ role: "system", content: system.value }] : [];
    const begun = performance.now();
    send.disabled = again.disabled = true;
    said.textContent = `${model.value} is answering; the first time it has to be loaded.`;
    for (const failed of place.querySelectorAll(".failed")) failed.remove();
    try {
      const answer = await post(chat.dataset.chat, {
        model: model.value, messages: [...given, ...turns], seed,
        temperature: temperature.valueAsNumber, max_new_tokens: max_new_tokens.valueAsNumber,
      });
      const why = { stop: "", length: ", cut off at the limit", prompt_too_long: "" }[answer.finish_reason];
      const text = answer.shown ?? "(no room: the conversation fills what the model can read)";
      show("assistant", `${model.value}: ${answer.tokens} tokens in ${((performance.now() - begun) / 1000).toFixed(1)} s${why}`, text);
      if (answer.text !== null) turns.push({ role: "assistant", content: answer.text });
      said.textContent = "";
    } catch (error) {
      show("failed", "No answer", error.message);
      said.textContent = "";
    }
    send.disabled = false;
    again.disabled = turns.length === 0;
  };
  chat.addEventListener("submit", (event) => {
    event.preventDefault();
    const { message } = chat.elements;
    if (send.disabled || !message.value.trim()) return;
    turns.push({ role: "user", content: message.value });
    show("user", "You", message.value);
    message.value = "";
    ask();
  });
  again.addEventListener("click", () => {
    if (turns.at(-1)?.role === "assistant") {
      turns.pop();
      [...place.querySelectorAll(".assistant")].at(-1)?.remove();
    }
    seed += 1;
    ask();
  });
  chat.querySelector("[data-clear]").addEventListener("click", () => {
    turns.length = 0;
    place.replaceChildren();
    again.disabled = true;
  });
  chat.elements.message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) chat.requestSubmit();
  });
}

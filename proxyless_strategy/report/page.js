"use strict";

// Moves the drawing of a search through its epochs, and copies what is there to be copied.

const frameMs = (count) => Math.min(500, Math.max(60, 6000 / count));

function film(root) {
  const source = root.querySelector("script[type='application/json']");
  if (!source) return null;
  const data = JSON.parse(source.textContent);
  const blocks = [...root.querySelectorAll("[data-edge]")];
  const cells = [...root.querySelectorAll("[data-odds]")];
  const slider = root.querySelector("input[type=range]");
  const button = root.querySelector("button.play");
  const said = root.querySelector(".said");
  const last = data.stills.length - 1;
  const words = data.costs.length > 0;
  const shown = (element, name, text) => {
    const place = element.querySelector(name);
    if (place) place.textContent = text;
  };
  let timer = null;

  function draw(number) {
    const still = data.stills[number];
    for (const block of blocks) {
      const edge = Number(block.dataset.edge);
      const chosen = still.chosen[edge];
      const share = still.odds[edge][words ? chosen : 0] / 1000;
      const [kind, side, height, width, colour] = data.shapes[data.options[edge][chosen]];
      const box = block.querySelector(".box");
      box.className = `box ${colour}`;
      box.style.setProperty("--h", height);
      box.style.setProperty("--w", width);
      box.style.setProperty("--p", share);
      const percent = `${Math.round(100 * share)}%`;
      block.title = `${data.labels[edge]}: ${data.names[edge][chosen]}, ${percent}`;
      shown(block, ".kind", kind);
      shown(block, ".side", side);
      shown(block, ".share", percent);
      if (words) shown(block, ".cost", data.costs[edge][chosen] ?? "");
    }
    for (const cell of cells) {
      const [edge, candidate] = cell.dataset.odds.split(".").map(Number);
      const share = still.odds[edge][candidate] / 1000;
      cell.style.setProperty("--p", share);
      cell.firstElementChild.textContent = Math.round(100 * share);
    }
    said.textContent = still.said;
    slider.value = number;
    slider.setAttribute("aria-valuetext", still.name);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }

  function play() {
    if (timer !== null) return stop();
    if (Number(slider.value) === last) draw(0);
    button.textContent = "Pause";
    timer = setInterval(() => {
      draw(Number(slider.value) + 1);
      if (Number(slider.value) === last) stop();
    }, frameMs(last));
  }

  function step(key) {
    const now = Number(slider.value);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[key];
    stop();
    draw(Math.min(last, Math.max(0, next)));
  }

  slider.addEventListener("input", () => {
    stop();
    draw(Number(slider.value));
  });
  button.addEventListener("click", play);
  root.querySelector(".controls").hidden = false;
  draw(last);
  return { root, slider, step };
}

const films = [...document.querySelectorAll(".film")].map(film).filter(Boolean);

// Of several drawings the one that is nearest to the middle of the window hears the keys.
function nearest() {
  const middle = window.innerHeight / 2;
  const away = ({ root }) => {
    const { top, bottom } = root.getBoundingClientRect();
    return top > middle ? top - middle : bottom < middle ? middle - bottom : 0;
  };
  return films.reduce((best, one) => (best && away(best) <= away(one) ? best : one), null);
}

document.addEventListener("keydown", (event) => {
  const plain = !event.altKey && !event.ctrlKey && !event.metaKey && !event.shiftKey;
  if (!plain || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
  const here = films.find(({ root }) => root.contains(event.target));
  // the slider moves by itself, and Home and End are the whole page's elsewhere
  if (event.target.type === "range" || (!here && ["Home", "End"].includes(event.key))) return;
  const heard = here ?? nearest();
  if (!heard) return;
  event.preventDefault();
  heard.step(event.key);
});

for (const button of document.querySelectorAll("button.copier")) {
  const text = button.previousElementSibling;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {
      // where the page may not write to the clipboard, the text is marked and the user's own keys copy it
      const range = document.createRange();
      range.selectNodeContents(text);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Marked";
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

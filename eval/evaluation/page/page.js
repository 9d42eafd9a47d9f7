"use strict";

// ---------------------------------------------------------------------------------------------- videos, played in step

/** All videos of a sample: one frame number, from 0, rules them. */
class Playback {
  constructor(article) {
    this.article = article;
    this.bar = article.querySelector(".transport");
    this.button = this.bar.querySelector(".play");
    this.seeker = this.bar.querySelector(".seek");
    this.output = this.bar.querySelector("output");
    this.frames = Math.max(...[...article.querySelectorAll("video")].map((video) => Number(video.dataset.frames)));
    this.seeker.max = this.frames - 1;
    this.playing = false;
    this.button.addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    this.seeker.addEventListener("input", () => {
      this.pause();
      this.show(Number(this.seeker.value));
    });
    this.bar.hidden = false;
    this.tell(0);
  }

  /** Those that a browser has loaded; the first leads. */
  get videos() {
    return [...this.article.querySelectorAll("video")].filter((video) => video.readyState > 0);
  }

  attach() {
    for (const video of this.article.querySelectorAll("video:not([src])")) this.open(video);
  }

  open(video) {
    video.muted = true;
    video.onloadedmetadata = () => this.place(video, Number(this.seeker.value));
    video.onerror = () => replace(video);
    video.src = video.dataset.src;
  }

  /** Out of sight: a browser holds only so many open videos. */
  detach() {
    this.pause();
    for (const video of this.article.querySelectorAll("video[src]")) {
      video.removeAttribute("src");
      video.load();
    }
  }

  place(video, frame) {
    video.currentTime = ((frame + 0.5) / this.frames) * video.duration;
  }

  show(frame) {
    for (const video of this.videos) this.place(video, frame);
    this.tell(frame);
  }

  tell(frame) {
    this.seeker.value = frame;
    this.output.textContent = `frame ${frame + 1} of ${this.frames}`;
    this.seeker.setAttribute("aria-valuetext", this.output.textContent);
  }

  play() {
    if (Playback.active && Playback.active !== this) Playback.active.pause();
    Playback.active = this;
    this.playing = true;
    this.button.textContent = "Pause";
    this.attach();
    this.show(Number(this.seeker.value) === this.frames - 1 ? 0 : Number(this.seeker.value));
    requestAnimationFrame(() => this.follow());
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.button.textContent = "Play";
    for (const video of this.videos) video.pause();
    this.show(Number(this.seeker.value));
  }

  /** Runs at every repaint: starts what is stopped, moves who is half a frame off to where the first one is. */
  follow() {
    if (!this.playing) return;
    const [leader, ...others] = this.videos;
    if (leader?.ended) this.show(0);
    if (leader && !leader.seeking) {
      const half = leader.duration / this.frames / 2;
      for (const video of others) {
        if (!video.seeking && Math.abs(video.currentTime - leader.currentTime) > half) video.currentTime = leader.currentTime;
      }
      for (const video of [leader, ...others]) if (video.paused && !video.ended) video.play().catch(() => {});
      this.tell(Math.min(this.frames - 1, Math.floor((leader.currentTime / leader.duration) * this.frames)));
    }
    requestAnimationFrame(() => this.follow());
  }
}

/** So that nothing moves while a file is read. */
function keepSize(from, to) {
  for (const name of ["width", "height"]) to.setAttribute(name, from.getAttribute(name));
}

/** What stands for a video that this browser cannot decode. */
function replace(video) {
  if (!video.isConnected) return; // no longer compared
  const { still, stillIs } = video.closest("figure")?.dataset ?? {};
  const article = video.closest("article");
  const note = document.createElement("p");
  note.className = "note";
  note.textContent = "This browser cannot play the file.";
  if (still) {
    const image = document.createElement("img");
    image.src = still;
    image.className = video.className;
    keepSize(video, image);
    image.alt = video.getAttribute("aria-label");
    video.before(image);
    note.textContent += stillIs === "GIF" ? " Its GIF is shown, which has fewer colours and does not play in step." : " Some of its frames are shown.";
  }
  video.replaceWith(note);
  article.querySelector(".transport").hidden = !article.querySelector("video");
}

// ---------------------------------------------------------------------------------------------------------- comparison

/** What was last chosen in any panel: where the next one to be opened begins. */
const lastChoice = { left: 0, right: 1, mode: "wipe", gain: 2, at: 50 };

/** Fill the panel of a sample with two of its caches, those last chosen. Its choice is its own from then on. */
function openComparison(details, playback) {
  const panel = document.getElementById("comparison").content.firstElementChild.cloneNode(true);
  const article = details.closest("article");
  const figures = [...article.querySelectorAll("figure")];
  const [stage, layers, wipe, gain] = [".stage", ".layers", ".wipe", ".gain"].map((name) => panel.querySelector(name));
  const selects = { left: panel.querySelector("select.left"), right: panel.querySelector("select.right") };
  const radios = [...panel.querySelectorAll("[type=radio]")];
  const choice = { ...lastChoice };

  function choose(change) {
    Object.assign(choice, change);
    Object.assign(lastChoice, change);
  }

  /** A layer of the stage: the whole sample, not its smaller copy. */
  function layer(figure) {
    const shown = figure.querySelector("video, img");
    if (!shown) return figure.querySelector(".note").cloneNode(true);
    const copy = document.createElement(shown.localName);
    copy.className = shown.className;
    keepSize(shown, copy);
    if (shown.localName === "video") {
      Object.assign(copy, { muted: true, playsInline: true, preload: "auto" });
      Object.assign(copy.dataset, shown.dataset);
      copy.setAttribute("aria-label", figure.dataset.label);
    } else {
      Object.assign(copy, { src: figure.dataset.still ?? figure.dataset.url, alt: figure.dataset.label });
    }
    return copy;
  }

  function draw() {
    const [left, right] = [figures[choice.left], figures[choice.right]];
    layers.replaceChildren(layer(right), layer(left)); // the left one lies above and is cut at the line
    for (const video of layers.querySelectorAll("video")) playback.open(video);
    adjust();
  }

  function adjust() {
    const [left, right] = [figures[choice.left].dataset.label, figures[choice.right].dataset.label];
    selects.left.value = choice.left;
    selects.right.value = choice.right;
    const difference = choice.mode === "difference";
    stage.classList.toggle("difference", difference);
    panel.querySelector(".tag.left").textContent = difference ? `|${left} − ${right}| × ${2 ** choice.gain}` : left;
    panel.querySelector(".tag.right").textContent = right;
    wipe.setAttribute("aria-label", `Line between ${left} and ${right}`);
    stage.style.setProperty("--at", `${choice.at}%`);
    stage.style.setProperty("--gain", 2 ** choice.gain);
    wipe.value = choice.at;
    wipe.setAttribute("aria-valuetext", `${choice.at} percent of the left one`);
    gain.value = choice.gain;
    gain.setAttribute("aria-valuetext", `times ${2 ** choice.gain}`);
    panel.querySelector("output").textContent = `× ${2 ** choice.gain}`;
    for (const radio of radios) radio.checked = radio.value === choice.mode;
  }

  for (const side of ["left", "right"]) {
    choice[side] = Math.min(choice[side], figures.length - 1);
    selects[side].append(...figures.map((figure, index) => new Option(figure.dataset.label, index)));
    selects[side].addEventListener("change", () => {
      choose({ [side]: Number(selects[side].value) });
      draw();
    });
  }
  panel.querySelector(".swap").addEventListener("click", () => {
    choose({ left: choice.right, right: choice.left });
    draw();
  });
  for (const radio of radios) {
    radio.name = `show-${article.id}`;
    radio.addEventListener("change", () => {
      choose({ mode: radio.value });
      adjust();
    });
  }
  for (const [name, input] of Object.entries({ at: wipe, gain })) {
    input.addEventListener("input", () => {
      choose({ [name]: Number(input.value) });
      adjust();
    });
  }
  const first = figures[0].querySelector("video, img");
  stage.classList.toggle("wide", Number(first?.getAttribute("width")) > Number(first?.getAttribute("height")));
  details.append(panel);
  draw();
}

// ---------------------------------------------------------------------------------------------------------------- page

const playbacks = new Map();
for (const article of document.querySelectorAll(".sample")) {
  if (article.querySelector("video")) playbacks.set(article, new Playback(article));
}
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) playbacks.get(target).attach();
      else playbacks.get(target).detach();
    }
  },
  { rootMargin: "400px" },
);
for (const article of playbacks.keys()) watcher.observe(article);

for (const details of document.querySelectorAll(".compare")) {
  const toggle = () => {
    const panel = details.querySelector(".panel");
    if (!details.open) panel?.remove();
    else if (!panel) openComparison(details, playbacks.get(details.closest("article")));
  };
  details.hidden = false;
  details.addEventListener("toggle", toggle);
  toggle(); // of one that is open from the start, the event may be over
}

const copy = document.querySelector(".copy");
copy.hidden = false;
copy.addEventListener("click", async () => {
  const code = document.querySelector("#repeat code");
  const said = document.querySelector(".copied");
  try {
    await navigator.clipboard.writeText(code.textContent);
    said.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(code);
    said.textContent = "Selected; copy it with the keyboard.";
  }
});

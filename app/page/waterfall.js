// The startup ledger as bars over time: one per phase, grouped by what does the work, with milestones as numbered marks.
// Takes the body of /startupz; phases that still run are not in it, so the axis ends now and grows until the server is ready.

import { byId, drawn, element, seconds } from "./wording.js";

const GROUPS = ["server", "loader", "engine", "weights"];
const GROUP_OF = { interpreter: "server", ready: "server", source: "loader", plan: "loader", arena: "loader" };
const MILESTONES = {
  artifact_fetch_start: "first read",
  artifact_fetch_end: "last byte fetched",
  host_staging_complete: "last byte in place",
  model_load_complete: "weights bound",
  first_token_time: "warm-up's first token",
  ready_time: "ready",
  first_answer_time: "first answer",
};
// Pixels: what is left of the bars, what is right of them, a row, its bar; and how many ticks there is room for.
const WIDE = { label: 132, after: 58, row: 20, bar: 10, ticks: 8 };
const NARROW = { label: 0, after: 0, row: 32, bar: 7, ticks: 4 };
const NARROW_BELOW_PX = 560;
const AXIS_PX = 20;
const MARKS_PX = 28; // the line of numbered marks
const MARK_PX = 8; // a mark's radius
const MARK_GAP_PX = 19;
const NOW_PX = 44; // the word, and the half of a number left of it
const GROUP_PX = 30;

export class Waterfall {
  constructor() {
    this.startup = null;
    this.drawnKey = "";
    new ResizeObserver(() => this.draw()).observe(byId("waterfall"));
  }

  show(startup) {
    this.startup = startup;
    byId("startup").hidden = startup.phases.length === 0;
    this.draw();
  }

  // Anew only if something changed: a redrawn bar loses its tooltip.
  draw() {
    const widthPx = byId("waterfall").clientWidth;
    if (this.startup === null || widthPx === 0) {
      return;
    }
    const { phases, milestones } = this.startup;
    const endS = axisEnd(this.startup);
    const key = JSON.stringify([widthPx, endS, phases, milestones]);
    if (key === this.drawnKey) {
      return;
    }
    this.drawnKey = key;
    byId("waterfall").replaceChildren(chart(this.startup, endS, widthPx));
    byId("milestones").replaceChildren(...legend(milestones));
    byId("phases").replaceChildren(...tableRows(phases));
  }
}

// A start that is over keeps its axis: what comes later (a first request after an hour) is in the legend only.
function axisEnd({ state, now_s: nowS, phases, milestones }) {
  const lastS = Math.max(...phases.map((phase) => phase.end_s), milestones.ready_time ?? 0);
  const firstAnswerS = milestones.first_answer_time ?? 0;
  return isOnTheWay(state) ? Math.max(nowS, lastS) : Math.max(lastS, firstAnswerS < lastS * 1.1 ? firstAnswerS : 0);
}

function isOnTheWay(state) {
  return state === "starting" || state === "loading" || state === "warming";
}

function chart(startup, endS, widthPx) {
  const frame = frameOf(endS, widthPx);
  const content = drawn("g");
  let y = AXIS_PX + (Object.keys(startup.milestones).length > 0 ? MARKS_PX : 0);
  for (const [group, phases] of grouped(startup.phases)) {
    content.append(drawn("text", { x: 0, y: y + GROUP_PX - 10, class: "group" }, group[0].toUpperCase() + group.slice(1)));
    y += GROUP_PX;
    for (const phase of phases) {
      content.append(bar(phase, group, y, frame));
      y += frame.sizes.row;
    }
  }
  const words = `Startup: ${startup.phases.length} phases in ${seconds(endS)}; all are in the table below`;
  const svg = drawn("svg", { width: widthPx, height: y + 4, role: "img", "aria-label": words });
  const isGrowing = isOnTheWay(startup.state);
  svg.append(
    axis(endS, y, frame.rightPx - (isGrowing ? NOW_PX : 0), frame),
    marks(startup.milestones, endS, y, frame),
    ...(isGrowing ? [now(endS, y, frame)] : []),
    content,
  );
  return svg;
}

// Where a second since exec is, and what is how large.
function frameOf(endS, widthPx) {
  const sizes = widthPx < NARROW_BELOW_PX ? NARROW : WIDE;
  const rightPx = widthPx - sizes.after;
  const x = (atS) => sizes.label + (atS / endS) * (rightPx - sizes.label);
  return { x, sizes, rightPx, widthPx };
}

function grouped(phases) {
  const groups = new Map(GROUPS.map((group) => [group, []]));
  for (const phase of phases) {
    const first = phase.name.split(".")[0];
    groups.get(GROUP_OF[first] ?? (groups.has(first) ? first : "server")).push(phase);
  }
  return [...groups].filter(([, members]) => members.length > 0);
}

// Its words are beside the bar where there is room, above it on a phone.
function bar(phase, group, y, { x, sizes, rightPx }) {
  const isNarrow = sizes === NARROW;
  const fromPx = Math.min(x(phase.start_s), rightPx - 2);
  const widthPx = Math.max(2, x(phase.end_s) - fromPx);
  const took = seconds(phase.end_s - phase.start_s);
  const barY = isNarrow ? 18 : (sizes.row - sizes.bar) / 2;
  const textY = isNarrow ? 13 : sizes.row / 2 + 4;
  const tookAt = isNarrow ? { x: rightPx - 5, "text-anchor": "end" } : { x: fromPx + widthPx + 7 };
  const name = phase.name.startsWith(`${group}.`) ? phase.name.slice(group.length + 1) : phase.name;
  return drawn(
    "g",
    { class: `phase ${group}`, "data-phase": phase.name, transform: `translate(0 ${y})` },
    drawn("title", {}, `${phase.name}: ${seconds(phase.start_s)} to ${seconds(phase.end_s)}, took ${took}`),
    drawn("rect", { x: fromPx, y: barY, width: widthPx, height: sizes.bar, rx: Math.min(3, widthPx / 2) }),
    drawn("text", { x: 0, y: textY, class: "name" }, name),
    drawn("text", { ...tookAt, y: textY, class: "took" }, took),
  );
}

// `untilPx` is where the word "now" needs the place.
function axis(endS, heightPx, untilPx, { x, sizes }) {
  const drawing = drawn("g", { class: "axis" });
  const stepS = niceStep(endS / sizes.ticks);
  for (let index = 0; x(index * stepS) <= untilPx; index += 1) {
    const atPx = x(index * stepS);
    const words = `${Number((index * stepS).toPrecision(6))} s`;
    drawing.append(
      drawn("line", { x1: atPx, x2: atPx, y1: AXIS_PX, y2: heightPx }),
      drawn("text", { x: atPx, y: 12, "text-anchor": index === 0 && sizes === NARROW ? "start" : "middle" }, words),
    );
  }
  return drawing;
}

function now(endS, heightPx, { x, sizes }) {
  const atPx = x(endS);
  const anchor = sizes === NARROW ? "end" : "middle";
  return drawn(
    "g",
    { class: "now" },
    drawn("line", { x1: atPx, x2: atPx, y1: AXIS_PX, y2: heightPx }),
    drawn("text", { x: atPx, y: 12, "text-anchor": anchor }, "now"),
  );
}

// The least of 1, 2, 5, 10, 20, 50... and 0.1, 0.2, 0.5... that is no smaller.
function niceStep(leastS) {
  const magnitude = 10 ** Math.floor(Math.log10(leastS));
  return [1, 2, 5, 10].map((factor) => factor * magnitude).find((step) => step >= leastS * 0.9999);
}

function marks(milestones, endS, heightPx, { x, widthPx }) {
  const drawing = drawn("g", { class: "marks" });
  const known = inOrder(milestones).filter(([, atS]) => atS <= endS * 1.0001);
  const places = apart(known.map(([, atS]) => x(atS)), widthPx - MARK_PX);
  known.forEach(([name, atS], index) => {
    const atPx = x(atS);
    const y = AXIS_PX + MARK_PX + 3;
    const path = `M${places[index]} ${y + MARK_PX} L${atPx} ${AXIS_PX + MARKS_PX + 2} V${heightPx}`;
    drawing.append(
      drawn(
        "g",
        { "data-milestone": name },
        drawn("title", {}, `${MILESTONES[name] ?? name}: ${seconds(atS)}`),
        drawn("path", { d: path }),
        drawn("circle", { cx: places[index], cy: y, r: MARK_PX }),
        drawn("text", { x: places[index], y: y + 4, "text-anchor": "middle" }, `${index + 1}`),
      ),
    );
  });
  return drawing;
}

// Centres in order, moved as little as keeps the marks from covering each other.
function apart(centres, lastPx) {
  const placed = [];
  for (const centre of centres) {
    placed.push(Math.max(centre, MARK_PX + 1, (placed.at(-1) ?? -MARK_GAP_PX) + MARK_GAP_PX));
  }
  for (let index = placed.length - 1, limit = lastPx; index >= 0; index -= 1, limit = placed[index + 1] - MARK_GAP_PX) {
    placed[index] = Math.min(placed[index], limit);
  }
  return placed;
}

function inOrder(milestones) {
  return Object.entries(milestones).sort(([, first], [, second]) => first - second);
}

function legend(milestones) {
  return inOrder(milestones).map(([name, atS]) =>
    element("li", { title: name }, MILESTONES[name] ?? name, " ", element("span", {}, seconds(atS))),
  );
}

function tableRows(phases) {
  return phases.map(({ name, start_s: fromS, end_s: toS }) => {
    const numbers = [fromS, toS, toS - fromS].map((value) => element("td", {}, value.toFixed(3)));
    return element("tr", {}, element("th", { scope: "row" }, name), ...numbers);
  });
}

// Asks the server how it is and tells the parts of the page. Knows when to ask what, and the server's two probes;
// how they are shown is in status.js, waterfall.js and prompt.js.

import { PromptBox } from "./prompt.js";
import { showFacts, showState, showUnreachable } from "./status.js";
import { Waterfall } from "./waterfall.js";

const ASK_AGAIN_MS = { ready: 5000, unreachable: 1500, other: 500 };
const PATIENCE_MS = 5000;

const waterfall = new Waterfall();
const promptBox = new PromptBox(() => look());

let lastHealth = null;
let timer = 0;
let looking = false;

// Addresses are relative: a proxy may serve all of this below a path of its own.
async function read(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  return response.json();
}

async function look() {
  clearTimeout(timer);
  if (looking || document.visibilityState === "hidden") {
    return;
  }
  looking = true;
  let pace = ASK_AGAIN_MS.unreachable;
  try {
    const [health, startup] = await Promise.all([read("health"), read("startupz")]);
    show(health, startup);
    pace = ASK_AGAIN_MS[health.state] ?? ASK_AGAIN_MS.other;
  } catch {
    showUnreachable(lastHealth);
    promptBox.serverIs("unreachable");
  } finally {
    looking = false;
    timer = setTimeout(look, pace);
  }
}

function show(health, startup) {
  lastHealth = health;
  showState(health);
  showFacts(health, startup);
  waterfall.show(startup);
  promptBox.serverIs(health.state);
}

document.addEventListener("visibilitychange", look);
look();

"""The page in a real browser, before a server that can be brought into every state at will."""

from __future__ import annotations

import asyncio
import re

import pytest

from app.api.server import ApiOptions
from app.lifecycle import Lifecycle, State
from streaming.clock import boottime_s
from streaming.progress import Progress
from tests.browser import browsing
from tests.coldstream import wait_for
from tests.unit.scripted_engine import HANG, listening, serve

TITLES = {
    State.STARTING: "Starting",
    State.LOADING: "Loading",
    State.WARMING: "Warming up",
    State.READY: "Ready",
    State.DRAINING: "Draining",
    State.FAILED: "Failed",
}
# The contrast of every visible text with what is behind it, by WCAG 2.2's formula; the ones below 4.5.
FAINT_TEXTS = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value <= 10.31475 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    const color = channels(getComputedStyle(node).backgroundColor);
    return color.length === 3 ? color : behind(node.parentElement);
  };
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.matches(":disabled, title, noscript")) continue;
    const style = getComputedStyle(node);
    const [text, ground] = [channels(node.closest("svg") ? style.fill : style.color), behind(node)].map(light);
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    seen.push([walker.currentNode.data.trim(), ratio]);
  }
  return [seen.length, seen.filter(([, ratio]) => ratio < 4.5)];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def lifecycle_in(state, detail="as it is"):
    lifecycle = Lifecycle()
    if state in (State.WARMING, State.READY, State.DRAINING):
        lifecycle.advance(State.LOADING, detail)
        lifecycle.advance(State.WARMING, detail)
    if state is State.DRAINING:
        lifecycle.advance(State.READY, detail)
    assert lifecycle.advance(state, detail)
    return lifecycle


def with_phases(served):
    """A ledger with a phase of every process, the last of them ending after ten seconds."""
    for name in ("interpreter", "server.import", "source.headers", "engine.import", "weights.fetch", "ready"):
        served.service.ledger.phase(name, 1.0, 10.0)
    served.service.ledger.milestone("artifact_fetch_start", 1.5)
    served.service.ledger.milestone("ready_time", 10.0)
    return served


async def on_page(browser, served, look, **window):
    """Open the page of a server that listens meanwhile, and call `look` in a thread: the driver blocks."""
    async with listening(served.app) as url:
        await asyncio.to_thread(browser.open, f"{url}/", **window)
        await asyncio.to_thread(wait_for, lambda: browser.text("#state") != "Connecting")
        return await asyncio.to_thread(look)


def ask(browser, prompt="hi"):
    wait_for(lambda: browser.text("#endpoint"))
    browser.one("#prompt").send_keys(prompt)
    browser.one("#send").click()


@pytest.mark.parametrize("state", list(State))
async def test_every_state_has_a_title_and_its_detail(browser, state):
    """The heading, the tab's title and the detail tell the state; the box for a prompt is there in READY alone."""

    def look():
        assert browser.text("#state") == TITLES[state]
        assert browser.text("#detail") == "as it is"
        assert browser.driver.title == f"{TITLES[state]} · Coldstream"
        assert browser.one("#try").is_displayed() == (state is State.READY)
        indeterminate = browser.count("#load:not([hidden]) progress:indeterminate")
        assert indeterminate == (state in (State.STARTING, State.LOADING, State.WARMING))

    await on_page(browser, with_phases(serve(lifecycle=lifecycle_in(state))), look)


async def test_progress_is_told_in_words_and_to_screen_readers(browser):
    """Bytes, rate, share and estimate are those of /health."""
    lifecycle = lifecycle_in(State.LOADING)
    lifecycle.progress = Progress(total_bytes=4_000_000_000, start_s=boottime_s() - 1)
    lifecycle.progress.add(1_000_000_000, boottime_s())

    def look():
        assert browser.text("#landed") == "1.00 GB of 4.00 GB"
        assert browser.one("#progress").get_attribute("aria-valuetext") == "1.00 GB of 4.00 GB"
        assert re.fullmatch(r"[\d.]+ MB/s", browser.text("#rate"))
        assert re.fullmatch(r"\d+ s left", browser.text("#eta"))
        assert browser.driver.title == "25% Loading · Coldstream"

    await on_page(browser, with_phases(serve(lifecycle=lifecycle)), look)


async def test_the_axis_grows_until_the_server_is_ready(browser):
    """A phase's bar gets shorter while time passes, and keeps its length afterwards."""
    served = with_phases(serve(lifecycle=lifecycle_in(State.WARMING)))
    # Exec was a moment before the phases' end, which is to be seen to move.
    served.service.ledger.exec_s = boottime_s() - 10.0

    def look():
        widths = [width()]
        wait_for(lambda: width() < widths[0])
        wait_for(lambda: browser.count(".now") == 1)
        served.service.lifecycle.advance(State.READY, "warm")
        wait_for(lambda: browser.text("#state") == "Ready" and browser.count(".now") == 0)
        return widths[0], width()

    def width():
        return float(browser.ask("document.querySelector('[data-phase=\"weights.fetch\"] rect').getAttribute('width')"))

    growing, ready = await on_page(browser, served, look)
    assert ready >= growing


async def test_what_the_server_says_is_text_and_never_markup(browser):
    """Tags in a detail, a fallback, a phase's name and an answer are shown as they are written."""
    tag = "<img src=x onerror=document.title=1>"
    served = with_phases(serve(tag, lifecycle=lifecycle_in(State.READY, detail=tag)))
    served.service.ledger.phase(tag, 2.0, 3.0)
    served.service.ledger.fallback(tag, "reason")

    def look():
        assert browser.text("#detail") == tag
        assert browser.text("#fallbacks") == f"{tag} reason"
        assert tag in browser.text("#waterfall")
        ask(browser)
        wait_for(lambda: browser.text("#answer") == tag)
        assert browser.count("img:not([src='page/icon.svg'])") == 0
        assert browser.complaints() == []

    await on_page(browser, served, look)


@pytest.mark.parametrize(
    ("template", "path"), [("{{ messages[0].content }}", "v1/chat/completions"), (None, "v1/completions")]
)
async def test_a_model_without_a_chat_template_is_asked_for_completions(browser, template, path):
    """The box uses the chat where there is a template, and says which endpoint it asks."""

    def look():
        ask(browser)
        wait_for(lambda: browser.text("#answer") == "hello")
        assert browser.text("#endpoint") == f"POST /{path}"
        assert browser.text("#error") == ""

    await on_page(browser, serve(template=template), look)


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (lambda _: ["broken"], "500: broken."),
        (lambda _: [104, "broken"], "The answer broke off: broken"),
    ],
    ids=["before the first token", "within the stream"],
)
async def test_an_answer_that_fails_is_one_line(browser, script, line):
    """A failure before the headers and one after them are both told, and another prompt may be sent."""

    def look():
        ask(browser)
        wait_for(lambda: browser.text("#error"))
        assert browser.text("#error") == line
        assert browser.one("#send").is_enabled()

    await on_page(browser, serve(script), look)


async def test_an_answer_in_one_piece_has_no_speed(browser):
    """Tokens that come at one moment took no time: their rate is left out."""

    def look():
        browser.driver.execute_script("performance.now = () => 5")
        ask(browser)
        wait_for(lambda: browser.text("#answer") == "hello" and browser.one("#send").is_displayed())
        assert browser.text("#speed") == "first token after < 1 ms · 6 tokens"

    await on_page(browser, serve(), look)


async def test_stop_ends_the_search_for_the_model_too(browser):
    """Whoever asks a server that does not say which model it has is not held by it."""
    served, told = serve(), asyncio.Event()

    async def silent(scope, receive, send):
        if scope["path"] == "/v1/models":
            await told.wait()
        await served.app(scope, receive, send)

    def look():
        wait_for(lambda: browser.one("#prompt").is_displayed())
        browser.one("#prompt").send_keys("hi")
        browser.one("#send").click()
        browser.one("#stop").click()
        wait_for(lambda: browser.text("#error") == "Stopped.")
        assert browser.one("#send").is_enabled()

    async with listening(silent) as url:
        try:
            await asyncio.to_thread(browser.open, f"{url}/")
            await asyncio.to_thread(look)
        finally:
            told.set()


async def test_a_full_server_says_when_to_come_back(browser):
    """A 429 is shown with its Retry-After."""
    served = serve(lambda _: [HANG], max_sequences=1)

    def look():
        ask(browser)
        wait_for(lambda: served.engine.submitted)
        browser.driver.switch_to.new_window("tab")
        browser.open(f"{url}/")
        ask(browser)
        wait_for(lambda: browser.text("#error"))
        text = browser.text("#error")
        browser.driver.close()
        browser.driver.switch_to.window(browser.driver.window_handles[0])
        return text

    async with listening(served.app) as url:
        await asyncio.to_thread(browser.open, f"{url}/")
        text = await asyncio.to_thread(look)
    assert re.fullmatch(r"429: .+\. Try again in \d+ s\.", text)


async def test_a_hidden_page_asks_nothing(browser):
    """While it is in the background the page leaves the server alone, and catches up when it is back."""
    served = serve(lifecycle=lifecycle_in(State.LOADING))
    asked = []

    async def counting(scope, receive, send):
        asked.append(scope["path"])
        await served.app(scope, receive, send)

    def look():
        hide(hidden=True)
        wait_for(lambda: browser.ask("document.visibilityState") == "hidden")
        before = len(asked)
        assert browser.driver.execute_async_script("setTimeout(() => arguments[0](true), 1500)")
        during = len(asked) - before
        hide(hidden=False)
        wait_for(lambda: len(asked) - before > during)
        return during

    def hide(*, hidden):
        state = "hidden" if hidden else "visible"
        browser.driver.execute_script(
            "Object.defineProperty(document, 'visibilityState', {value: arguments[0], configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))",
            state,
        )

    async with listening(counting) as url:
        await asyncio.to_thread(browser.open, f"{url}/")
        await asyncio.to_thread(wait_for, lambda: browser.text("#state") == "Loading")
        during = await asyncio.to_thread(look)
    assert during <= 2  # what was on its way


async def test_nothing_foreign_runs(browser):
    """The policy that the page is sent with stops a script in the markup, and the browser says so."""

    def look():
        browser.driver.execute_script(
            "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
        )
        assert browser.ask("window.ran") is None
        assert any("Content Security Policy" in line for line in browser.complaints())

    await on_page(browser, serve(), look)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("state", [State.READY, State.FAILED, State.LOADING])
async def test_every_text_stands_out_from_what_is_behind_it(browser, dark, state):
    """Contrast is 4.5 or more in both colour schemes, which differ."""
    served = with_phases(serve(lifecycle=lifecycle_in(state)))

    def look():
        wait_for(lambda: browser.count("[data-phase]"))
        if state is State.READY:
            ask(browser)
            wait_for(lambda: browser.text("#speed"))
        count, faint = browser.ask(FAINT_TEXTS)
        assert faint == []
        assert count > 20
        ground = re.findall(r"\d+", browser.ask("getComputedStyle(document.body).backgroundColor"))
        assert (max(map(int, ground)) < 64) == dark

    await on_page(browser, served, look, dark=dark)


async def test_every_control_has_a_label_and_long_words_do_not_widen_the_page(browser):
    """On a phone of 360 pixels nothing is to be scrolled sideways, and each field says what it is for."""
    served = with_phases(
        serve("word" * 40, lifecycle=lifecycle_in(State.READY, "x" * 300), options=ApiOptions(api_keys=("key",)))
    )

    def look():
        wait_for(lambda: browser.one("#key").is_displayed())
        browser.one("#key").send_keys("key")
        browser.one("#prompt").send_keys("hi")
        browser.one("#send").click()
        wait_for(lambda: browser.text("#speed"))
        browser.one("summary").click()
        unlabelled = "[...document.querySelectorAll('input, textarea')].filter((field) => field.labels.length !== 1)"
        assert browser.ask(f"{unlabelled}.length") == 0
        assert not browser.overflows()

    await on_page(browser, served, look, width_px=360)

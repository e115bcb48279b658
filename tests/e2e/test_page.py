"""The page in a real browser, on a real server: a start is watched, a prompt is tried, and the end is told."""

from __future__ import annotations

import contextlib
import os
import re
import signal

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser import browsing
from tests.coldstream import serving, wait_for
from tools.blob_server import BlobServer

PHONE_PX = 360
NO_FOLDER = "no such folder: check the path and the volume's mount"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def listens(server):
    """Wait until the port answers, whatever it says."""

    def answers():
        with contextlib.suppress(httpx.TransportError):
            return server.client.get("/livez")

    wait_for(lambda: answers() is not None)


def try_prompt(browser, prompt, max_tokens):
    """Ask as a reader would, by keyboard."""
    for selector, text in (("#max-tokens", str(max_tokens)), ("#prompt", prompt)):
        field = browser.one(selector)
        field.clear()
        field.send_keys(text)
    browser.one("#prompt").send_keys(Keys.CONTROL, Keys.ENTER)


def test_a_start_is_watched_and_a_prompt_tried_without_a_reload(browser, demo_model_dir, tmp_path):
    """Progress and estimate while bytes land, then ready, a bar per phase and a streamed answer, on a phone, too."""
    with (
        BlobServer(demo_model_dir, bytes_per_s=50e6) as source,
        serving(source.url, "--chunk-mib", "2", log_path=tmp_path / "log") as server,
    ):
        listens(server)
        browser.open(f"{server.url}/")
        browser.driver.execute_script("window.isTheSame = true")
        estimates, shares = set(), []

        def is_ready():
            if estimate := browser.text("#eta"):
                estimates.add(estimate)
                shares.append(float(browser.ask("document.querySelector('#progress').value")))
                assert not browser.overflows()
            return browser.text("#state") == "Ready"

        browser.resize(PHONE_PX)
        wait_for(is_ready, 120)
        startup = server.client.get("/startupz").json()
        wait_for(lambda: browser.count("[data-phase]") == len(startup["phases"]))
        drawn = browser.ask("[...document.querySelectorAll('[data-phase]')].map((bar) => bar.dataset.phase)")
        assert sorted(drawn) == sorted(phase["name"] for phase in startup["phases"])
        assert browser.count("#phases tr") == len(drawn)
        assert browser.count("[data-milestone]") == browser.count("#milestones li") == len(startup["milestones"])
        try_prompt(browser, "Tell a long story.", max_tokens=6)
        wait_for(lambda: browser.text("#speed").replace("\xa0", " ").endswith("· 6 tokens"), 60)
        assert browser.text("#answer")
        assert re.fullmatch(
            r"first token after [\d.]+ m?s · [\d.]+ tokens/s · 6 tokens", browser.text("#speed").replace("\xa0", " ")
        )
        wait_for(lambda: browser.count("#milestones li") == len(startup["milestones"]) + 1)  # the first answer
        assert not browser.overflows()
        assert browser.ask("window.isTheSame") is True
        assert browser.complaints() == []
    assert shares == sorted(shares)
    assert len(set(shares)) > 2
    assert all(re.fullmatch(r"\d+ (s|min \d+ s) left", estimate) for estimate in estimates)


def test_an_answer_can_be_stopped_by_keyboard(browser, demo_model_dir, tmp_path):
    """Stop ends the generation in the engine, keeps what had come, and gives the focus back."""
    with serving(str(demo_model_dir), log_path=tmp_path / "log") as server:
        server.wait_ready()
        browser.open(f"{server.url}/")
        wait_for(lambda: browser.text("#endpoint") == "POST /v1/chat/completions")
        try_prompt(browser, "Count from one to a thousand.", max_tokens=2000)
        wait_for(lambda: browser.text("#answer"), 60)
        browser.one("#stop").send_keys(Keys.ENTER)
        wait_for(lambda: browser.text("#error") == "Stopped.")
        assert browser.text("#answer")
        assert browser.ask("document.activeElement.id") == "send"
        wait_for(lambda: "\ncoldstream_requests_running 0.0\n" in server.client.get("/metrics").text)
        assert browser.complaints() == []


def test_a_key_is_asked_for_where_one_is_needed(browser, demo_model_dir, tmp_path):
    """A 401 is told in one line, with a field for the key; with the right one the same prompt is answered."""
    with serving(str(demo_model_dir), "--api-key", "right", log_path=tmp_path / "log") as server:
        server.wait_ready()
        browser.open(f"{server.url}/")
        wait_for(lambda: browser.text("#error").startswith("401: a valid API key is needed"))
        key = browser.one("#key")
        key.send_keys("wrong")
        try_prompt(browser, "Hello", max_tokens=2)
        wait_for(lambda: browser.one("#send").is_displayed())
        assert browser.text("#error").startswith("401: ")
        key.clear()
        key.send_keys("right")
        browser.one("#send").click()
        wait_for(lambda: browser.text("#speed"), 60)
        assert browser.text("#error") == ""
        assert browser.text("#model") == "m"
        assert browser.complaints() == []


def test_a_lost_server_is_told_and_looked_for_until_it_is_back(browser, demo_model_dir, tmp_path):
    """A kill in the middle of an answer is a line, the state says unreachable, and another server is found by itself."""
    with serving(str(demo_model_dir), log_path=tmp_path / "first") as server:
        server.wait_ready()
        url = server.url
        browser.open(f"{url}/")
        wait_for(lambda: browser.text("#endpoint"))
        try_prompt(browser, "Count from one to a thousand.", max_tokens=2000)
        wait_for(lambda: browser.text("#answer"), 60)
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: browser.text("#error") == "The connection to the server was lost.")
        wait_for(lambda: browser.text("#state") == "Unreachable")
        assert "It last said: ready" in browser.text("#detail")
        assert not browser.one("#send").is_enabled()
    with serving(str(demo_model_dir), "--port", url.rpartition(":")[2], log_path=tmp_path / "second"):
        wait_for(lambda: browser.text("#state") == "Ready", 90)
        assert browser.one("#send").is_enabled()


def test_a_failure_is_shown_with_its_reason_and_remembered(browser, tmp_path):
    """What failed is on the page while it lingers, and still there when the server has gone."""
    missing = tmp_path / "missing"
    with serving(str(missing), "--fail-linger", "60", log_path=tmp_path / "log") as server:
        listens(server)
        browser.open(f"{server.url}/")
        wait_for(lambda: browser.text("#state") == "Failed")
        assert browser.text("#detail") == server.health()[1]["detail"] == f"file://{missing}: {NO_FOLDER}"
        assert not browser.one("#try").is_displayed()
        assert browser.complaints() == []
    wait_for(lambda: browser.text("#state") == "Unreachable")
    assert f"failed: file://{missing}: {NO_FOLDER}" in browser.text("#detail")

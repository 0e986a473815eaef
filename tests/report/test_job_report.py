"""report.html in a real browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Keys

from tests.report.browser import Browser
from tests.report.conftest import Ended, end_job, wait_for

FILM: list[dict[str, Any]] = [
    {"text": "Good evening.", "start": 1.0, "end": 2.0},
    {"text": "Is it?", "speaker": "bo", "start": 2.5, "end": 2.7},
    {"text": "Who knows?", "speaker": "bo", "come": "failed", "start": 3.0, "end": 4.0},
    {"text": "…", "come": "skipped"},
    {"text": "We do.", "start": 5.0, "end": 6.0},
]

HOSTILE = [
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title = 'broken'\"><b>bold</b>",
    "\"'`${document.title = 'broken'}\\ &amp; \u2028 \u2029",
    "שלום \u202eevil\u202c مرحبا 😀👩‍👩‍👧",
    "long " * 400,
    "x" * 2000,
]

CLICK = "document.querySelector(arguments[0]).click()"


@pytest.fixture
def film(tmp_path: Path) -> Ended:
    """Five lines of two speakers: three spoken, one of them too long for its slot, one failed, one skipped."""
    return end_job(tmp_path, FILM)


@pytest.fixture
def slow_film(tmp_path: Path) -> Ended:
    """The same, with recordings that no browser plays to their end while it is looked at."""
    return end_job(tmp_path, FILM, seconds=30.0)


def shown(browser: Browser) -> list[int]:
    """The segments in the list, by index."""
    found: list[str] = browser.run("return [...document.querySelectorAll('.row')].map((row) => row.dataset.index)")
    return [int(index) for index in found]


def playing(browser: Browser) -> str | None:
    """The segment whose button shows that it plays."""
    found: str | None = browser.run("return document.querySelector('.row:has(.play.on)')?.dataset.index ?? null")
    return found


def texts(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.run(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)", selector
    )
    return found


def assert_clean(browser: Browser, *wavs: str) -> None:
    """Nothing on the console, and nothing asked for but the page and these WAVs."""
    assert browser.console() == []
    asked = [url.rpartition("/")[2] for url in browser.requests()]
    assert asked[0] == "report.html"
    assert sorted(set(asked[1:])) == sorted(wavs)


def test_what_the_page_says(browser: Browser, film: Ended) -> None:
    """The head's counts, each line with its text, spoken and slot length, tries, seed, what was done to its WAV, and
    why it failed."""
    film.job.segments[0].finishing = {
        "spoken_s": 0.5, "trimmed_start_s": 0.02, "trimmed_end_s": 0.03, "speed": 1.125, "measured_lufs": -20.0,
        "gain_db": -3.0, "loudness_lufs": -23.0, "true_peak_dbtp": -6.0, "limited_by_peak": False,
    }  # fmt: skip
    film.write()
    browser.open(film.report)
    head = " ".join(texts(browser, ".head"))
    for part in ("film", "partial", "3 of 5", "1 failed", "1 skipped", "draft", "Beyond their slots"):
        assert part in head
    assert shown(browser) == [0, 1, 2, 3, 4]
    first, second, third, fourth, _ = texts(browser, ".row")
    assert "Good evening." in first
    assert "0.40 / 1.00 s" in first
    assert "1 try" in first
    assert "seed 7" in first
    assert "×1.13" in first
    assert "+0.20" in second
    assert "nothing_spoken: three tries ended in silence" in third
    assert "skipped" in fourth
    drawn = browser.run("return document.querySelector('.row .wave path').getAttribute('d')")
    assert drawn.count("M") == 64
    browser.run(CLICK, '[data-index="0"]')
    (facts,) = texts(browser, ".now-facts")
    for part in ("0.05 s of silence trimmed", "sped up ×1.13 from 0.50 s", "−23.0 LUFS (−3.0 dB)"):
        assert part in facts
    assert_clean(browser)


def test_a_line_is_played_and_paused(browser: Browser, slow_film: Ended) -> None:
    """By its button; its WAV alone is fetched. One that was not spoken has nothing to play."""
    browser.open(slow_film.report)
    browser.run(CLICK, '[data-index="1"] .play')
    wait_for(browser, "document.querySelector('[data-index=\"1\"] .play.on')")
    wait_for(browser, "document.querySelector('[data-index=\"1\"] path.heard').getAttribute('d')")
    browser.run(CLICK, '[data-index="1"] .play')
    wait_for(browser, "!document.querySelector('.row .play.on')")
    assert browser.run("return document.querySelector('[data-index=\"2\"] .play').disabled")
    assert_clean(browser, "segment_0001.wav")


def test_play_through(browser: Browser, film: Ended) -> None:
    """All that was spoken, in order, then silence; what failed is passed over."""
    browser.open(film.report)
    browser.run(
        "window.heard = []; new MutationObserver(() => heard.push(document.querySelector('#told').textContent))"
        ".observe(document.querySelector('#told'), { childList: true })"
    )
    browser.run(CLICK, "#play-all")
    wait_for(browser, "document.querySelector('#told').textContent === 'Playing 4, anna'")
    wait_for(browser, "!document.querySelector('.row .play.on')")
    assert browser.run("return heard") == ["Playing 0, anna", "Playing 1, bo", "Playing 4, anna"]
    assert_clean(browser, "segment_0000.wav", "segment_0001.wav", "segment_0004.wav")


def test_filters(browser: Browser, film: Ended) -> None:
    """By status, by speaker, by words, and all of them together."""
    browser.open(film.report)
    browser.run(CLICK, "[data-kind=failed]")
    assert shown(browser) == [2]
    browser.run(CLICK, "[data-kind=over]")
    assert shown(browser) == [1]
    browser.run(CLICK, "[data-kind=all]")
    browser.run(CLICK, "#voices button:nth-child(2)")
    assert shown(browser) == [1, 2]
    browser.run(CLICK, "#find")
    browser.press("/")
    browser.press(*"KNOWS")
    assert shown(browser) == [2]
    browser.press(*"XYZ")
    assert shown(browser) == []
    assert texts(browser, "#nothing") == ["No segment is like that."]
    assert_clean(browser)


def test_keys(browser: Browser, slow_film: Ended) -> None:
    """Arrows choose and play, space plays and pauses, r collects what is to be redone and copies the command."""
    browser.open(slow_film.report)
    browser.chrome.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert browser.run("return document.activeElement.dataset.index") == "1"
    browser.press(Keys.SPACE)
    wait_for(browser, "document.querySelector('[data-index=\"1\"] .play.on')")
    browser.press(Keys.ARROW_RIGHT)
    wait_for(browser, "document.querySelector('[data-index=\"4\"] .play.on')")
    browser.press(Keys.SPACE)
    wait_for(browser, "!document.querySelector('.row .play.on')")
    browser.press(Keys.ARROW_UP, "r", Keys.ARROW_UP, "r", Keys.HOME, "r")
    assert texts(browser, "#command") == ["dubd redo film --segments 0,2-3 --seed new"]
    wait_for(browser, "document.querySelector('#told').textContent === '3 segments to redo; the command is copied'")
    browser.press("r")
    browser.run(CLICK, "#new-seed")
    assert texts(browser, "#command") == ["dubd redo film --segments 2-3"]
    browser.press(Keys.ARROW_DOWN)
    assert browser.console() == []


def test_a_job_id_is_one_word_of_the_command(browser: Browser, tmp_path: Path) -> None:
    """Whatever a shell would make of it."""
    ended = end_job(tmp_path, FILM[:1], job_id="it's $HOME; rm -rf ~ `x`")
    browser.open(ended.report)
    browser.run(CLICK, ".mark")
    assert texts(browser, "#command") == [
        "dubd redo 'it'\\''s $HOME; rm -rf ~ `x`' --segments 0 --seed new",
    ]


def test_hostile_texts_are_texts(browser: Browser, tmp_path: Path) -> None:
    """Tags, quotes, right-to-left, emoji and 2,000 characters, in lines and in names: they are shown as they are, run
    nothing, and no row is larger for them."""
    segments = [{"text": text, "speaker": text[:100].replace("\u2028", "").replace("\u2029", "")} for text in HOSTILE]
    ended = end_job(tmp_path, segments, name="film <b>.json", job_id="film & 'co'")
    browser.chrome.set_window_size(1280, 1400)
    browser.open(ended.report)
    assert browser.chrome.title == "film & 'co' · dubd"
    assert texts(browser, "#name") == ["film & 'co'"]
    lines: list[str] = browser.run("return [...document.querySelectorAll('.words p')].map((p) => p.textContent)")
    assert lines == HOSTILE
    assert browser.run("return document.querySelectorAll('main img, main b b, .words b').length") == 0
    heights = browser.run("return [...new Set([...document.querySelectorAll('.row')].map((row) => row.offsetHeight))]")
    assert len(heights) == 1
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    for index in range(len(HOSTILE)):
        browser.run("document.querySelector(`[data-index='${arguments[0]}']`).click()", index)
    assert_clean(browser)


def test_earlier_takes_can_be_heard(browser: Browser, film: Ended) -> None:
    """A line that was redone lists them."""
    (film.folder / "takes").mkdir()
    (film.folder / "takes" / "segment_0000.1.wav").write_bytes((film.folder / "segment_0000.wav").read_bytes())
    take = {"status": "ok", "seed": 3, "duration_s": 0.4, "file": "takes/segment_0000.1.wav"}
    film.job.segments[0].history = (take,)
    film.write()
    browser.open(film.report)
    assert "take 2" in texts(browser, ".row")[0]
    browser.run(CLICK, ".row")
    assert texts(browser, ".takes button") == ["Take 1: 0.40 s, seed 3"]
    browser.run(CLICK, ".takes button")
    deadline = time.monotonic() + 20
    asked: list[str] = []
    while not any(url.endswith("takes/segment_0000.1.wav") for url in asked):
        asked += browser.requests()
        assert time.monotonic() < deadline
    assert browser.console() == []


def test_a_wav_that_has_gone_is_said(browser: Browser, slow_film: Ended) -> None:
    """And the page goes on."""
    (slow_film.folder / "segment_0001.wav").unlink()
    browser.open(slow_film.report)
    browser.run(CLICK, '[data-index="1"] .play')
    wait_for(browser, "document.querySelector('.now-facts .bad')?.textContent.includes('segment_0001.wav')")
    browser.run(CLICK, '[data-index="0"] .play')
    wait_for(browser, "document.querySelector('[data-index=\"0\"] .play.on')")


def test_a_job_that_is_not_over_says_so(browser: Browser, film: Ended) -> None:
    """The page of a running job shows what there is so far."""
    film.job.ended_at = None
    film.job.segments[4].status = "waiting"
    film.write()
    browser.open(film.report)
    assert "The job is not over" in texts(browser, "#early")[0]
    browser.run(CLICK, "[data-kind=waiting]")
    assert shown(browser) == [4]
    assert_clean(browser)


def test_without_times_lines_are_laid_end_to_end(browser: Browser, tmp_path: Path) -> None:
    """A job without a film has a timeline all the same."""
    ended = end_job(tmp_path, [{"text": "One."}, {"text": "Two."}])
    browser.open(ended.report)
    assert "laid end to end" in texts(browser, "#film-title")[0]
    assert_clean(browser)


def test_everything_can_be_read_aloud(browser: Browser, film: Ended) -> None:
    """Every button has a name, the list says how long it is, and only one row is a stop of the tab key."""
    browser.open(film.report)
    browser.run(CLICK, ".row .mark")
    nameless = browser.run(
        "return [...document.querySelectorAll('button, input')].filter((one) => one.offsetParent && "
        "!(one.getAttribute('aria-label') || one.innerText.trim() || one.labels?.[0]?.innerText.trim()))"
        ".map((one) => one.outerHTML)"
    )
    assert nameless == []
    assert browser.run("return document.querySelector('[role=grid]').getAttribute('aria-rowcount')") == "5"
    assert browser.run("return document.querySelectorAll('.row[tabindex=\"0\"]').length") == 1


def test_print_has_every_row(browser: Browser, tmp_path: Path) -> None:
    """Also those that were not on the screen; afterwards they are gone again."""
    ended = end_job(tmp_path, [{"text": f"Line {number}.", "come": "waiting"} for number in range(300)])
    browser.open(ended.report)
    assert len(shown(browser)) < 100
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert shown(browser) == list(range(300))
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert len(shown(browser)) < 100


def test_the_timeline_fits_the_paper(browser: Browser, tmp_path: Path) -> None:
    """It is drawn for the screen, which is wider; nothing of it is cut off at the paper's edge."""
    browser.open(end_job(tmp_path, [{"text": "One.", "start": 1.0, "end": 2.0}]).report)
    assert browser.run("return document.getElementById('canvas').clientWidth") > 700
    main = "document.querySelector('main')"
    try:
        browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        browser.run(f"{main}.style.width = '600px'")
        right = "getBoundingClientRect().right"
        assert browser.run(f"return document.getElementById('canvas').{right} <= {main}.{right}")
    finally:
        browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_ten_thousand_segments(browser: Browser, tmp_path: Path) -> None:
    """Open, and scroll to the end and back; only what is seen exists, and the right rows are seen."""
    segments = [
        {"text": f"Line {number}, and then some more of it.", "speaker": f"s{number % 12}", "come": "waiting",
         "start": float(number), "end": number + 0.9}
        for number in range(10_000)
    ]  # fmt: skip
    ended = end_job(tmp_path, segments)
    browser.open(ended.report)
    assert "0 of 10,000" in " ".join(texts(browser, ".facts"))
    for index in (9_999, 5_000, 0):
        browser.run("scrollTo(0, arguments[0] / 9999 * (document.querySelector('.list').offsetHeight + 400))", index)
        wait_for(browser, "document.querySelector(`[data-index='${arguments[0]}']`)", index)
        assert len(shown(browser)) < 100
    browser.press(Keys.END)
    wait_for(browser, "document.activeElement.dataset.index === '9999'")
    assert_clean(browser)

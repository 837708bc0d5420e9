"""The page in a real browser: what moves, what keys do, what a narrow window and a dark one show, and who can read it.

Debian's `chromium` and `chromium-driver` and the extra `browser` are needed; without them these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from proxyless_strategy.report.page import write_page
from tests.proxyless_strategy.report.left import large, leave, result, with_film

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name in ("selenium", "axe_core_python") if find_spec(name) is None]
MISSING += [name for name, path in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if path is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)} here: pip install '.[browser]', apt-get install chromium-driver"
)

FLAGS = (
    "--headless",
    "--no-sandbox",  # as root there is none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",  # as on a phone, where they take no room
)
EVIL = '"\'><script>alert("1")</script><img src=x onerror=alert(1)>'
WIDTHS = {"desk": 1280, "phone": 390}
OTHER_WIDTHS = {"small phone": 320, "tablet": 820, "small desk": 1120}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A sweep of three with warnings and what is over its target, one search, a large one, an old one, odd names."""
    place = tmp_path_factory.mktemp("pages")
    for name, rule, row in (
        ("a", "gradient", result(latency_ms=2.2)),
        ("b", "reinforce", result(latency_ms=1.5, accuracy=0.9)),
        ("c", "reinforce", result(latency_ms=2.3, accuracy=0.8, warnings=["too few steps were planned"])),
    ):
        leave(place / "sweep" / name, rule=rule, row=row)
        with_film(place / "sweep" / name)
    blocks = {f"stage{1 + n // 4}_block{n % 4}": ("3x3_e3", "5x5_e6", "7x7_e6", "skip")[n % 4] for n in range(21)}
    for name, choices in (("one", blocks), ("large", large(100)), ("old", None), ("odd", {EVIL: EVIL, "x": "3x3_e3"})):
        leave(place / name, choices=choices, row=result())
        if name != "old":
            record = with_film(place / name, epochs=12)
        if name == "odd":
            record["warnings"] = [EVIL]
            (place / name / "search.json").write_text(json.dumps(record))
        (place / name / "model").mkdir()
        (place / name / "model" / "hubconf.py").write_text("")
    return {
        folder.name: write_page(folder, folder / "report.html") for folder in sorted(place.iterdir()) if folder.is_dir()
    }


@pytest.fixture
def look(browser, pages):
    """Opens a page in a window of some width, in light or dark, and asserts in the end that nothing went wrong."""

    def opened(name, *, width="desk", theme="light"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": (WIDTHS | OTHER_WIDTHS)[width], "height": 844, "deviceScaleFactor": 1, "mobile": False},
        )
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(pages[name].as_uri())
        return browser

    yield opened
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def find(driver, selector):
    from selenium.webdriver.common.by import By

    return driver.find_elements(By.CSS_SELECTOR, selector)


def press(element, key):
    from selenium.webdriver.common.keys import Keys

    element.send_keys(getattr(Keys, key))


def shown(driver):
    """What the first drawing shows: its words, every box, and every probability."""
    return driver.execute_script(
        "const film = document.querySelector('.film');"
        "return [film.querySelector('.said').textContent,"
        " [...film.querySelectorAll('[data-edge]')].map(b => [b.textContent, b.title,"
        "   b.querySelector('.box').className, b.querySelector('.box').getAttribute('style')]),"
        " [...film.querySelectorAll('[data-odds]')].map(c => c.textContent),"
        " film.querySelector('input').value, film.querySelector('input').getAttribute('aria-valuetext')]"
    )


@pytest.mark.parametrize("name", ["one", "large"])
def test_the_slider_moves_the_drawing(look, name):
    driver = look(name)
    (slider,) = find(driver, ".film input")
    seen = [shown(driver)]
    for _ in range(12):
        press(slider, "ARROW_LEFT")
        seen.append(shown(driver))
    assert [state[3] for state in seen] == [str(number) for number in range(12, -1, -1)]
    assert seen[0][0].startswith("Exported subnet, ")
    assert seen[-1][0].startswith("Likeliest subnet of epoch 1, ")
    assert (seen[0][4], seen[-1][4]) == ("exported subnet", "epoch 1")
    # the last candidate leads in the first epoch, and the exported one in the end
    assert seen[0][1] != seen[8][1] != seen[-1][1]
    assert bool(seen[0][2]) == (name == "one")
    press(slider, "END")
    assert shown(driver) == seen[0]


def test_the_pages_own_drawing_is_what_the_script_draws_of_it(look, pages):
    """Else the drawing would jump when the slider comes back, or without scripts show something else."""
    driver = look("one")
    scripted = shown(driver)
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(pages["one"].as_uri())
        plain = shown(driver)
        assert not find(driver, ".film .controls")[0].is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert [state[:3] for state in plain[1]] == [state[:3] for state in scripted[1]]
    assert (plain[0], plain[2]) == (scripted[0], scripted[2])


def test_arrow_keys_move_the_drawing_from_anywhere(look):
    driver = look("one")
    body = find(driver, "body")[0]
    for key, value in (("ARROW_LEFT", "11"), ("ARROW_LEFT", "10"), ("ARROW_RIGHT", "11"), ("ARROW_RIGHT", "12")):
        press(body, key)
        assert shown(driver)[3] == value
    press(body, "ARROW_RIGHT")
    assert shown(driver)[3] == "12"
    press(find(driver, "button.play")[0], "HOME")
    assert shown(driver)[3] == "0"


def test_of_several_drawings_the_one_in_view_hears_the_keys(look):
    driver = look("sweep")
    sliders = find(driver, ".film input")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", find(driver, ".film .net")[1])
    press(find(driver, "body")[0], "ARROW_LEFT")
    assert [slider.get_attribute("value") for slider in sliders] == ["4", "3", "4"]


def test_play_goes_through_the_film_to_its_end(look):
    driver = look("sweep")
    button = find(driver, "button.play")[0]
    assert button.text == "Play"
    button.click()
    assert (button.text, shown(driver)[3]) == ("Pause", "0")
    deadline, seen = time.monotonic() + 30, []
    while button.text == "Pause" and time.monotonic() < deadline:
        seen.append(shown(driver)[3])
    assert list(dict.fromkeys([*seen, shown(driver)[3]])) == ["0", "1", "2", "3", "4"]
    button.click()
    button.click()
    assert button.text == "Play"
    assert shown(driver)[3] in ("0", "1")


def test_all_controls_are_reached_by_the_keyboard_in_their_order(look):
    driver = look("one")
    reached = []
    for _ in range(40):
        press(driver.switch_to.active_element, "TAB")
        element = driver.switch_to.active_element
        reached.append((element.tag_name, element.get_attribute("class")))
        if reached[-1] == ("body", ""):
            break
    places = [reached.index(wanted) for wanted in (("button", "play"), ("input", ""), ("button", "copier"))]
    assert places == sorted(places)


def test_what_is_copied_is_the_command_or_is_marked_to_be_copied(look):
    driver = look("one")
    button = find(driver, "button.copier")[0]
    button.click()
    deadline = time.monotonic() + 10
    while button.text == "Copy" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert button.text in ("Copied", "Marked")


@pytest.mark.parametrize(
    ("name", "theme", "width"),
    [
        *((name, theme, width) for name in ("sweep", "one") for theme in ("light", "dark") for width in WIDTHS),
        *((name, *each) for name in ("large", "old", "odd") for each in (("light", "desk"), ("dark", "phone"))),
    ],
)
def test_axe_finds_nothing(look, name, theme, width):
    import axe_core_python

    driver = look(name, width=width, theme=theme)
    for folded in find(driver, "details"):
        driver.execute_script("arguments[0].open = true", folded)
    driver.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script(
        "axe.run(document, {resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
    )
    told = [
        (rule["id"], rule["help"], [node["html"][:150] for node in rule["nodes"][:3]]) for rule in found["violations"]
    ]
    assert told == []
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}


def test_dark_is_dark_and_light_is_light(look):
    def brightness(theme):
        driver = look("one", theme=theme)
        colour = driver.execute_script(
            "return getComputedStyle(document.querySelector('main > section')).backgroundColor"
        )
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    assert brightness("dark") < 200 < 700 < brightness("light")


@pytest.mark.parametrize("width", [*WIDTHS, *OTHER_WIDTHS])
@pytest.mark.parametrize("name", ["sweep", "one", "large", "old", "odd"])
def test_nothing_is_cut(look, name, width):
    driver = look(name, width=width)
    for folded in find(driver, "details"):
        driver.execute_script("arguments[0].open = true", folded)
    pixels = (WIDTHS | OTHER_WIDTHS)[width]
    assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [pixels, pixels]
    outside = driver.execute_script(
        "const cut = e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0"
        "  && getComputedStyle(e).overflowX !== 'visible';"
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.unseen, thead, svg')"
        "  && (e.getBoundingClientRect().right > innerWidth + .5 || cut(e))).map(e => e.outerHTML.slice(0, 120))"
    )
    assert outside == []


def test_the_words_of_the_charts_are_legible_on_a_phone(look):
    driver = look("sweep", width="phone")
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('figure svg text')].map(t =>"
        " parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a)"
    )
    assert len(sizes) > 50
    assert min(sizes) >= 9.5
    inside = driver.execute_script(
        "return [...document.querySelectorAll('figure svg text')].filter(t => {"
        " const r = t.getBoundingClientRect(); return r.left < 0 || r.right > 390; }).map(t => t.textContent)"
    )
    assert inside == []


def test_odd_names_run_nothing(look):
    from selenium.common.exceptions import NoAlertPresentException

    driver = look("odd")
    (slider,) = find(driver, ".film input")
    press(slider, "HOME")
    press(slider, "END")
    with pytest.raises(NoAlertPresentException):
        driver.switch_to.alert  # noqa: B018
    assert find(driver, "main img") == []
    assert EVIL in find(driver, "main")[0].text

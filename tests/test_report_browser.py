"""The report in a browser: nothing fails, nothing is asked for, nothing sticks out, and what can be touched
does what it says.
"""

import json
import re
import shutil
import time
from urllib.parse import unquote

import pytest
from report_study import PAIR, PATHS, make_study, page, rows_of, use
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs the programs chromium and chromedriver"
)
WIDE, NARROW = (1440, 1000), (390, 844)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a small study and its report, which every test leaves as it was."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(autouse=True)
def in_its_folder(own_folders, study, monkeypatch):
    use(study, monkeypatch)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    # A page is waited for by what it shows: chromedriver can miss the event that ends a load, and then waits
    # for five minutes.
    options.page_load_strategy = "none"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    except WebDriverException as error:
        pytest.skip(f"chromium does not start here: {error.msg}")
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


def opened(browser, size=WIDE, scheme="light"):
    """The report in a window of that size, once the map is drawn."""
    width, height = size
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get("about:blank")
    wait_for(lambda: browser.execute_script("return location.href === 'about:blank'"))
    browser.get(PATHS.report.as_uri())
    drawn = (
        "return document.readyState === 'complete' && document.querySelector('#layer-map-text')?.textContent"
    )
    wait_for(lambda: browser.execute_script(drawn), seconds=60)
    return browser


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_page_opens_without_error_request_or_overflow(browser, size, scheme):
    browser.get_log("performance")
    browser.get_log("browser")
    opened(browser, size, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    decoded = (
        "const done = arguments[0]; Promise.all([...document.images].map((i) => i.decode())).then(() "
        "=> done(true), (e) => done(String(e)))"
    )
    assert browser.execute_async_script(decoded) is True
    widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == len(list(PATHS.figures.glob("*.svg")))
    assert min(widths) > 0
    page_width, window, columns = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth, "
        "getComputedStyle(document.body).gridTemplateColumns.split(' ').length]"
    )
    assert page_width <= window == size[0]
    assert columns == (2 if size == WIDE else 1)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert PATHS.report.as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
    assert [url for url in asked if url.startswith("file:") and url != PATHS.report.as_uri()] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    return sum(
        w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
        for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


def test_text_can_be_read_on_its_ground_in_light_and_dark(browser):
    grounds = set()
    for scheme in ("light", "dark"):
        opened(browser, WIDE, scheme)
        pairs = browser.execute_script(
            "const colour = (s, what) => getComputedStyle(document.querySelector(s))[what];"
            "return [['body', 'body'], ['figcaption a', 'body'], ['.study', 'body'], ['nav a', 'nav'], "
            "['thead th', 'thead th'], ['.note', '.note'],"
            " ['td .word', 'body']].map(([text, ground]) => [colour(text, 'color'), colour(ground, "
            "'backgroundColor')])"
        )
        grounds.add(pairs[0][1])
        for text, ground in pairs:
            low, high = sorted((luminance(text), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, text, ground)
    assert len(grounds) == 2


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_layer_map_follows_each_of_its_controls(browser, size):
    opened(browser, size)
    drawn = (
        "const all = Bokeh.documents[0]; const said = document.querySelector('#layer-map-text').textContent;"
        "return [said, JSON.stringify(['cells', 'band', 'frames', 'points'].map((name) => "
        "all.get_model_by_name(name).data))]"
    )
    seen = [browser.execute_script(drawn)]
    changes = {"teacher": "resnet20", "metric": "cka-linear", "k": "4", "selector": "random-2"}
    for control, value in changes.items():
        select = Select(browser.find_element("css selector", f"#layer-map-controls [name={control}]"))
        select.select_by_visible_text(value)
        text, data = wait_for(lambda: (now := browser.execute_script(drawn)) != seen[-1] and now)
        assert text != seen[-1][0], control
        assert data != seen[-1][1], control
        seen.append([text, data])
    assert seen[-1][0].startswith("resnet20, cka-linear, K = 4. random-2: hint layers ")
    points = [int(number) for number in re.search(r"hint layers ([\d, ]+) of 9", seen[-1][0])[1].split(", ")]
    assert json.loads(seen[-1][1])[3]["place"] == points
    assert len(points) == 4
    labelled = (
        "return [...document.querySelectorAll('#layer-map-controls select')].every((s) => "
        "s.labels.length === 1)"
    )
    assert browser.execute_script(labelled)
    size_of = (
        "const box = document.querySelector('#layer-map-plot').getBoundingClientRect(); return "
        "[box.width, box.height]"
    )
    width, height = browser.execute_script(size_of)
    assert 250 < width <= size[0]
    assert height > 200


@pytest.mark.parametrize("by", ["click", "key"])
def test_tables_are_sorted_up_and_down_by_each_column(browser, by):
    opened(browser)
    table = browser.find_element("id", f"table-03_distillation-{PAIR}-at-accuracy")
    browser.execute_script(
        "arguments[0].closest('details') && (arguments[0].closest('details').open = true)", table
    )
    heads = table.find_elements("css selector", "th")
    for place, head in enumerate(heads):
        button = head.find_element("css selector", "button")
        for order in ("ascending", "descending"):
            button.click() if by == "click" else button.send_keys(Keys.ENTER)
            assert [other.get_attribute("aria-sort") for other in heads] == [
                order if other == head else "none" for other in heads
            ]
            cells = table.find_elements("css selector", f"tbody td:nth-child({place + 1})")
            shown = [cell.get_attribute("title") or cell.text for cell in cells]
            if shown[-1] == "–":
                shown.pop()
            numeric = "number" in head.get_attribute("class")
            keys = [float(re.match(r"[-\d.e]+", text)[0]) if numeric else text for text in shown]
            assert keys == sorted(keys, reverse=order == "descending"), head.text
    assert {head.get_attribute("class") for head in heads} == {"", "number"}


def test_a_figure_opens_large_by_key_and_can_be_moved(browser):
    opened(browser, NARROW)
    figure = browser.find_element("id", "figure-02_hint_points-resnet14-3-one")
    button = figure.find_element("css selector", "a.enlarge")
    small = figure.find_element("css selector", "img").size["width"]
    button.send_keys(Keys.ENTER)
    viewer = browser.find_element("id", "viewer")
    assert viewer.is_displayed()
    view = viewer.find_element("css selector", ".scroll")
    assert browser.switch_to.active_element == view
    assert viewer.find_element("css selector", "img").size["width"] > 1.5 * small
    assert browser.execute_script("const v = arguments[0]; v.scrollTo(9, 0); return v.scrollLeft", view) == 9
    viewer.find_element("css selector", "button[value='0']").click()
    assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", view)
    view.send_keys(Keys.ESCAPE)
    wait_for(lambda: not viewer.is_displayed())
    assert browser.switch_to.active_element == button


def test_a_claim_leads_to_its_runs_and_a_link_unfolds_what_it_leads_to(browser):
    opened(browser, NARROW)
    menu, contents = browser.find_element("id", "menu"), browser.find_element("id", "contents")
    assert not contents.is_displayed()
    menu.click()
    assert contents.is_displayed()
    part = browser.find_element("id", f"03_distillation-{PAIR}-at")
    assert part.get_attribute("open") is None
    browser.execute_script(
        "arguments[0].click()", contents.find_element("css selector", f'a[href="#03_distillation-{PAIR}-at"]')
    )
    wait_for(lambda: part.get_attribute("open"))
    assert not contents.is_displayed()
    records = browser.find_element("css selector", "#summary .records")
    hashes = records.get_attribute("data-runs").split()
    browser.execute_script("arguments[0].open = true", records)
    *links, link = wait_for(lambda: records.find_elements("css selector", "a"))
    for name, run in zip(hashes, links, strict=True):
        (file,) = PATHS.records.glob(f"*_{name}.json")
        assert unquote(run.get_attribute("href")) == unquote(file.as_uri())
        assert (
            run.get_attribute("textContent") == f"{json.loads(file.read_text())['metrics']['accuracy']:.2f}"
        )
    browser.execute_script("arguments[0].click()", link)
    rows = [row[-1].text for row in rows_of(page().find("table", id="runs")[0])]
    fits = [name for name in rows if name in hashes]
    assert len(hashes) < len(fits) < len(rows)
    assert browser.find_element("id", "run-count").text.startswith(
        f"{len(hashes)} runs are shown, in {len(fits)} of {len(rows)} rows: those behind "
    )
    assert len(browser.find_elements("css selector", "#runs tbody tr:not([hidden])")) == len(fits)
    browser.find_element("css selector", "#run-filter button").click()
    assert len(browser.find_elements("css selector", "#runs tbody tr:not([hidden])")) == len(rows)

"""The page in a real browser, as its users have it: Debian's chromium without a window, driven by its own driver."""
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vilg.app.pipeline import load
from vilg.data.worlds import scenes

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromium-driver are not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page, in a process of its own as ``tools/web.py`` starts it; SIGTERM must leave nothing behind."""
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen([sys.executable, str(ROOT / "tools/web.py"), "--port", str(port)], text=True,
                               stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT), "TMPDIR": str(folder),
                                                            "PATH": "/usr/bin:/bin", "HOME": str(folder)}, cwd=ROOT)
    line = process.stdout.readline()
    assert "Open in a browser" in line
    assert any(path.name.startswith("vilg-web-") for path in folder.iterdir())
    yield f"http://127.0.0.1:{port}/"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert not [path for path in folder.iterdir() if path.name.startswith("vilg-web-")]


@pytest.fixture(scope="module")
def driver(address, tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium (dev extra) is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                     "--window-size=1200,1600", f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(argument)
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield browser
    browser.quit()


class Visit:
    """What a visitor does and sees."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.buttons("画 Draw"))

    def wait(self, condition):
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException

        deadline = time.monotonic() + SECONDS
        while True:
            try:
                found = condition()
            except (StaleElementReferenceException, ElementClickInterceptedException):
                found = None  # the page is drawn anew while it is looked at
            if found:
                return found
            assert time.monotonic() < deadline, self.driver.find_element("tag name", "body").text[-2000:]
            time.sleep(0.1)

    def shown(self, path):
        return [one for one in self.driver.find_elements("xpath", path) if one.is_displayed()]

    def buttons(self, label):
        return self.shown(f"//button[normalize-space()='{label}']")

    def click(self, find):
        self.wait(lambda: [one.click() or True for one in find()[:1]])

    def press(self, label):
        self.click(lambda: self.buttons(label))

    def tab(self, label):
        self.click(lambda: self.shown(f"//button[@role='tab'][contains(., '{label}')]"))

    def boxes(self, label):
        return self.shown(f"//label[contains(., '{label}')]//*[self::textarea or self::input]")

    def box(self, label):
        return self.wait(lambda: self.boxes(label))[0]

    def write(self, label, text):
        # Key by key a long text takes minutes; a paste is one event, as this is.
        script = ("arguments[0].value = arguments[1];"
                  "arguments[0].dispatchEvent(new Event('input', {bubbles: true})); return true")
        self.wait(lambda: [self.driver.execute_script(script, box, text) for box in self.boxes(label)[:1]])

    def upload(self, path):
        self.wait(lambda: self.shown("//button[contains(., 'Drop Image') or contains(., 'Upload')]"))
        inputs = [one for one in self.driver.find_elements("css selector", "input[type=file]")
                  if one.find_element("xpath", "./ancestor::*[@role='tabpanel']").is_displayed()]
        inputs[0].send_keys(str(path))

    def message(self, sentence):
        return self.wait(lambda: self.shown(f"//*[contains(@class, 'toast')][contains(., '{sentence}')]"))

    def pictures(self):
        return self.driver.execute_script(
            "return [...document.querySelectorAll('.enlarged .thumbnail-item img')].filter(i => i.complete "
            "&& i.naturalWidth).map(i => [i.src, i.naturalWidth])")


@pytest.fixture
def visit(driver, address):
    return Visit(driver, address)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(scenes.render(scenes.sample_scene(3, "test"), 64)).save(path)
    return path


def test_a_sentence_is_drawn(visit):
    visit.write("一句话 Sentence", "一个红色的圆形")
    visit.press("画 Draw")
    assert visit.wait(lambda: len(visit.pictures()) == 4 and {width for _, width in visit.pictures()} == {64})


def test_a_text_that_is_too_long_gets_a_sentence(visit):
    for text, sentence in (("红" * 99, "这句话太长"), ("红" * 300_000, "300000 个字")):
        visit.write("一句话 Sentence", text)
        visit.press("画 Draw")
        visit.message(sentence)
    assert visit.pictures() == []


def test_a_picture_is_described_and_asked_about(visit, scene):
    model = load("ernie_vilg_tiny")
    visit.tab("Describe")
    visit.upload(scene)
    visit.wait(lambda: visit.shown("//*[@role='tabpanel']//img"))
    visit.press("说一说 Describe")
    said = visit.box("描述 Description")
    assert visit.wait(lambda: said.get_attribute("value")) == model.image_to_text([scene])[0]
    visit.tab("Ask")
    visit.upload(scene)
    visit.wait(lambda: visit.shown("//*[@role='tabpanel']//img"))
    visit.write("问题 Question", "图里有几个图形？")
    visit.press("回答 Answer")
    told = visit.box("答案 Answer")
    assert visit.wait(lambda: told.get_attribute("value")) == model.answer([scene], ["图里有几个图形？"])[0]


def test_a_damaged_upload_gets_a_sentence(visit, scene, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(scene.read_bytes()[:100])
    visit.tab("Describe")
    visit.upload(damaged)
    visit.wait(lambda: visit.shown("//*[@role='tabpanel']//button[@aria-label='Clear' or @title='Clear' "
                                   "or @aria-label='Remove Image']"))
    visit.press("说一说 Describe")
    visit.message("不是一张完整的图片")


def set_number(visit, label, value):
    box = visit.wait(lambda: [one for one in visit.shown("//input[@type='number']")
                              if label in (one.get_attribute("aria-label") or "")])[0]
    visit.driver.execute_script("arguments[0].value = arguments[1]; for (const name of ['input', 'change']) "
                                "arguments[0].dispatchEvent(new Event(name, {bubbles: true}))", box, value)


def test_pictures_grow_are_stopped_and_the_next_ones_begin(visit):
    visit.write("一句话 Sentence", "左边是红色的圆形，右边是蓝色的方块")
    set_number(visit, "张数 Pictures", 16)
    visit.press("画 Draw")
    visit.wait(lambda: visit.shown("//*[contains(@class, 'live')][contains(., '正在画 Drawing')]"))
    assert visit.wait(lambda: len(visit.pictures()) == 16)  # they are there before they are whole
    visit.press("停 Stop")
    time.sleep(3)
    assert not visit.shown("//*[contains(., '画好了 Done')]")
    visit.write("一句话 Sentence", "一个红色的圆形")
    set_number(visit, "张数 Pictures", 2)
    visit.press("画 Draw")
    visit.wait(lambda: visit.shown("//*[contains(@class, 'live')][@aria-live='polite'][contains(., '画好了 Done: 2')]"))


def test_history_brings_sentence_and_seed_back_after_the_page_is_left(visit, address):
    visit.write("一句话 Sentence", "三个绿色的三角形")
    visit.write("种子 Seed", "77")
    visit.press("画 Draw")
    visit.wait(lambda: visit.shown("//*[contains(@class, 'live')][contains(., '画好了 Done')]"))
    again = Visit(visit.driver, address)
    assert again.box("种子 Seed").get_attribute("value") == "0"
    again.click(lambda: again.shown("//input[@aria-label='画过的 History']"))
    again.click(lambda: again.shown("//*[@role='option'][contains(., '三个绿色的三角形')][contains(., '77')]"))
    again.wait(lambda: again.box("种子 Seed").get_attribute("value") == "77")
    assert again.box("一句话 Sentence").get_attribute("value") == "三个绿色的三角形"


def test_what_is_painted_by_keyboard_is_drawn_anew(visit, scene):
    visit.tab("Repaint")
    visit.upload(scene)
    cells = "//*[@id='mask']//button"
    visit.wait(lambda: "url(\"data:" in visit.driver.execute_script(
        "return getComputedStyle(document.querySelector('#mask .cells')).backgroundImage"))
    first = visit.wait(lambda: visit.shown(cells))[0]
    visit.driver.execute_script("arguments[0].focus()", first)
    for key in ("\ue014", "\ue015", " "):  # right, down, space
        visit.driver.switch_to.active_element.send_keys(key)
        time.sleep(0.3)
    painted = visit.wait(lambda: visit.shown(cells + "[@aria-pressed='true']"))
    assert [one.get_attribute("data-at") for one in painted] == ["9"]
    assert "2 行 2 列" in painted[0].get_attribute("aria-label").replace("\n", "")
    visit.write("一句话 Sentence", "一个红色的圆形")
    visit.press("重画 Repaint")
    visit.wait(lambda: visit.shown("//*[contains(@class, 'live')][contains(., '画好了 Done: 4')]"))


def test_all_that_can_be_used_has_a_name_for_screen_readers(visit):
    tree = visit.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "textbox", "slider", "spinbutton", "checkbox", "radio", "tab", "combobox", "img", "switch"}
    nameless = [(one["role"]["value"], one.get("backendDOMNodeId")) for one in tree
                if not one.get("ignored") and one.get("role", {}).get("value") in roles
                and not (one.get("name") or {}).get("value")]
    assert nameless == []
    assert {"button", "textbox", "radio", "tab"} <= {one.get("role", {}).get("value") for one in tree}


def test_drawing_needs_no_mouse(visit):
    visit.write("一句话 Sentence", "一个红色的圆形")
    visit.driver.execute_script("arguments[0].focus()", visit.box("一句话 Sentence"))
    for _ in range(60):
        here = visit.driver.switch_to.active_element
        if here.text.strip() == "画 Draw":
            break
        here.send_keys("\ue004")  # tab
    assert visit.driver.switch_to.active_element.text.strip() == "画 Draw"
    visit.driver.switch_to.active_element.send_keys("\ue007")  # enter
    assert visit.wait(lambda: len(visit.pictures()) == 4)


def test_the_scene_to_try_is_one(visit):
    visit.tab("Describe")
    visit.press("给我一张例图 Give me a picture to try")
    image = visit.wait(lambda: visit.shown("//*[@role='tabpanel']//img"))[0]
    assert np.isclose(float(image.get_attribute("naturalWidth")), 64)

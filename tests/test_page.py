"""The page of serve.py in a browser: predictions and errors in both languages, no other server."""
import glob
import shutil

import pytest

from test_serve import service  # noqa: F401

playwright = pytest.importorskip("playwright.sync_api")
WORDS = {"en": (" sure", "heat map", "This cannot be read as an image",
                "The service does not understand this"),
         "zh": (" 把握", "热力图", "无法识别为图片", "服务无法理解这个请求")}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        try:  # the system's, else Playwright's own; --no-sandbox: root runs it in a container
            browser = p.chromium.launch(executable_path=shutil.which("chromium"),
                                        args=["--no-sandbox", "--disable-background-networking",
                                              "--use-fake-device-for-media-stream",
                                              "--use-fake-ui-for-media-stream",
                                              "--host-resolver-rules=MAP phone.test 127.0.0.1"])
        except playwright.Error as e:
            pytest.skip(f"no Chromium: {e.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.mark.parametrize("locale, width", [("en-US", 900), ("zh-CN", 420)])
def test_predictions_and_errors_change_their_language(
        sample, service, browser, tmp_path, locale, width):  # noqa: F811
    bad, address, asked, errors = tmp_path / "bad.jpg", service[0], [], []
    bad.write_bytes(b"no image")
    page = browser.new_page(locale=locale, viewport={"width": width, "height": 1000})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.check("#heat")
    page.route("**/predict?*", lambda route: route.fulfill(status=422, json={"detail": []}),
               times=1)
    page.evaluate("ask(new File([''], ''))")
    good = glob.glob(str(sample[0] / "sample" / "Other" / "*.png"))[0]
    page.set_input_files("#files", [good, bad])
    page.locator(".bar").nth(3).wait_for(timeout=60_000)
    page.locator(".error").nth(1).wait_for(timeout=60_000)
    heat = page.locator("img[src^='data:image/jpeg']")
    own, other = locale[:2], "zh" if locale == "en-US" else "en"
    for language in (own, other, own):
        page.screenshot(path=tmp_path / f"{locale}-{language}.png", full_page=True)
        sure, heat_map, *wrong = WORDS[language]
        titles = page.locator("article h2").all_inner_texts()
        assert sorted(t for t in titles if not t.endswith(sure)) == sorted(wrong)
        assert len(titles) == 3 and page.get_attribute("html", "lang") == language
        assert heat.get_attribute("alt") == heat_map
        assert heat.evaluate("e => e.naturalWidth") > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#language")
    folder = {"items": [], "files": [str(sample[0] / "sample")], "dragOperationsMask": 1}
    drag = {"x": 99, "y": 99, "data": folder}
    for step in ("dragEnter", "drop"):
        page.context.new_cdp_session(page).send("Input.dispatchDragEvent", {"type": step, **drag})
    page.locator("article").nth(3).locator(".error").wait_for()
    assert page.locator("article h2").first.inner_text() in [words[2] for words in WORDS.values()]
    own_addresses = (address + "/", "data:", f"blob:{address}/")
    assert errors == [] and len(asked) > 4
    assert [url for url in asked if not url.startswith(own_addresses)] == []
    page.close()


def test_the_live_camera_asks_until_it_is_stopped(service, browser):  # noqa: F811
    page, asked = browser.new_page(locale="en-US"), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(service[0])
    seen = page.locator("#seen")
    page.click("#start")
    page.get_by_text("most likely").wait_for(timeout=60_000)  # untrained: below 60 %
    before = len(asked)
    page.wait_for_timeout(2000)
    assert 2 <= len(asked) - before <= 6
    page.evaluate("limit.value = 0")
    page.locator("#seen", has_text=" sure").wait_for(timeout=10_000)
    page.click("#language")
    page.locator("#seen", has_text=" 把握").wait_for(timeout=10_000)
    page.click("#start")
    page.wait_for_timeout(500)
    before = len(asked)
    page.wait_for_timeout(1000)
    assert len(asked) == before and not seen.is_visible()
    page.goto(service[0].replace("127.0.0.1", "phone.test"))  # neither localhost nor https
    page.click("#start")
    assert seen.inner_text() == "The browser allows the camera only on localhost or over https"
    assert not page.locator("video").is_visible()
    page.close()

"""The page of serve.py in a real browser: answers and what went wrong, in both languages, and nobody else is asked."""
import glob
import shutil

import pytest
from test_serve import service  # noqa: F401

playwright = pytest.importorskip("playwright.sync_api")
WORDS = {"en": (" sure", "heat map", "This cannot be read as a picture", "The service does not understand this"),
         "zh": (" 把握", "热图", "无法识别为图片", "服务无法理解这个请求")}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        try:  # the system's, else Playwright's own; --no-sandbox: in a container it is run by root
            browser = p.chromium.launch(executable_path=shutil.which("chromium"),
                                        args=["--no-sandbox", "--disable-background-networking"])
        except playwright.Error as e:
            pytest.skip(f"no Chromium: {e.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.mark.parametrize("locale, width", [("en-US", 900), ("zh-CN", 420)])
def test_answers_and_errors_change_their_language(sample, service, browser, tmp_path, locale, width):  # noqa: F811
    bad, address, asked, errors = tmp_path / "bad.jpg", service[0], [], []
    bad.write_bytes(b"no picture")
    page = browser.new_page(locale=locale, viewport={"width": width, "height": 1000})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.check("#heat")
    page.route("**/predict?*", lambda route: route.fulfill(status=422, json={"detail": []}), times=1)
    page.evaluate("ask(new File([''], ''))")
    page.set_input_files("#files", [glob.glob(str(sample[0] / "sample" / "Other" / "*.png"))[0], bad])
    page.locator(".bar").nth(3).wait_for(timeout=60_000)
    page.locator(".error").nth(1).wait_for(timeout=60_000)
    heat = page.locator("img[src^='data:image/jpeg']")
    for language in ("en", "zh", "en") if locale == "en-US" else ("zh", "en", "zh"):
        page.screenshot(path=tmp_path / f"{locale}-{language}.png", full_page=True)
        sure, heat_map, *wrong = WORDS[language]
        titles = page.locator("article h2").all_inner_texts()
        assert sorted(t for t in titles if not t.endswith(sure)) == sorted(wrong) and len(titles) == 3
        assert (page.get_attribute("html", "lang"), heat.get_attribute("alt")) == (language, heat_map)
        assert heat.evaluate("e => e.naturalWidth") > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#language")
    drag = {"x": 99, "y": 99, "data": {"items": [], "files": [str(sample[0] / "sample")], "dragOperationsMask": 1}}
    for step in ("dragEnter", "drop"):  # a folder
        page.context.new_cdp_session(page).send("Input.dispatchDragEvent", {"type": step, **drag})
    page.locator("article").nth(3).locator(".error").wait_for()
    assert page.locator("article h2").first.inner_text() in [words[2] for words in WORDS.values()]
    assert errors == [] and len(asked) > 4
    assert [url for url in asked if not url.startswith((address + "/", "data:", f"blob:{address}/"))] == []
    page.close()

"""Pictures of a report's page as a browser shows it, to be looked at, and what axe-core finds wrong with it.

    .venv/bin/python -m tests.benchmarks.page_pictures PAGE.html OUT [--epochs 0 10 20]

`desk-light`, `desk-dark`, `phone-light` (390 px) are the whole page; `film-N` is its first drawing with the slider at
N (at its end stands the exported subnet). The last line is JSON: `{pictures, violations: {theme and width: count},
console_errors, requests}`.

Debian's chromium and chromium-driver and the extra `browser` are needed.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.proxyless_strategy.report.test_browser import CHROMIUM, DRIVER, FLAGS, MISSING, WIDTHS

VIEWS = (("desk", "light"), ("desk", "dark"), ("phone", "light"), ("phone", "dark"))


def take(page: Path, out: Path, epochs: list[int]) -> dict[str, Any]:
    """Write the pictures; return what the last line says.

    Args:
        page: A page that `proxyless report` has written.
        out: The folder of the pictures.
        epochs: Positions of the film's slider that are drawn; those beyond its end are left out.
    """
    from axe_core_python.selenium import Axe
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    out.mkdir(parents=True, exist_ok=True)
    pictures, violations = [], {}
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER or ""))
        try:

            def picture(name: str, clip: dict[str, float] | None = None) -> None:
                asked = {"captureBeyondViewport": True} | ({} if clip is None else {"clip": {**clip, "scale": 1}})
                content = driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
                (out / f"{name}.png").write_bytes(base64.b64decode(content))
                pictures.append(f"{name}.png")

            def whole() -> dict[str, float]:
                root = "document.documentElement"
                width, height = driver.execute_script(f"return [{root}.scrollWidth, {root}.scrollHeight]")
                return {"x": 0, "y": 0, "width": width, "height": height}

            for width, theme in VIEWS:
                size = {"width": WIDTHS[width], "height": 844, "deviceScaleFactor": 1, "mobile": False}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                features = [{"name": "prefers-color-scheme", "value": theme}]
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
                driver.get(page.resolve().as_uri())
                violations[f"{theme} {width}"] = len(Axe().run(driver)["violations"])
                picture(f"{width}-{theme}", whole())
                if (width, theme) == VIEWS[0]:
                    for epoch in epochs:
                        if _move(driver, epoch):
                            picture(f"film-{epoch}", _place(driver))
            errors = [entry["message"] for entry in driver.get_log("browser")]
            requests = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        finally:
            driver.quit()
    return {"pictures": pictures, "violations": violations, "console_errors": errors, "requests": requests}


def _move(driver: Any, epoch: int) -> bool:
    return bool(
        driver.execute_script(
            "const slider = document.querySelector('.film input');"
            "if (!slider || +slider.max < arguments[0]) return false;"
            "slider.value = arguments[0]; slider.dispatchEvent(new Event('input', {bubbles: true})); return true",
            epoch,
        )
    )


def _place(driver: Any) -> dict[str, float]:
    place: dict[str, float] = driver.execute_script(
        "const at = document.querySelector('.film').getBoundingClientRect();"
        "return {x: at.x + scrollX, y: at.y + scrollY, width: at.width, height: at.height}"
    )
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, nargs="*", default=[0, 10, 20])
    arguments = parser.parse_args()
    if MISSING:
        raise SystemExit(f"no {', '.join(MISSING)} here: pip install '.[browser]', apt-get install chromium-driver")
    print(json.dumps(take(arguments.page, arguments.out, arguments.epochs)))


if __name__ == "__main__":
    main()

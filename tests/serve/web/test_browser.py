"""Debian's Chromium at the review page: log in, see scan and map, write a verdict, find it in the audit trail."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import png_decode
from numpy.typing import NDArray

from tests.serve.web.browser import LAPTOP, PHONE, browser, log_in, served
from tests.serve.web.node import HOT_ZYX, Node


def pixels(element: Any) -> NDArray[Any]:
    """A screenshot of an element, (y, x, rgb)."""
    return np.asarray(png_decode(io.BytesIO(element.screenshot()).getvalue()))[..., :3].astype(int)


def redness(picture: NDArray[Any], row: float, column: float) -> int:
    """How much redder than grey the picture is around a place, given in 0..1."""
    y, x = round(row * picture.shape[0]), round(column * picture.shape[1])
    patch = picture[y - 2 : y + 3, x - 2 : x + 3]
    return int((patch[..., 0] - patch[..., 2]).mean())


def test_from_log_in_to_the_audit_trail_without_leaving_the_host(node: Node, tmp_path: Path) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    with served(node) as address, browser() as chromium:
        page = chromium.new_page(viewport=LAPTOP)
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        log_in(page, address, "ada")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/cases/1")

        scan, viewer = page.locator("#scan"), page.locator("#viewer")
        assert scan.evaluate("image => image.decode().then(() => image.naturalWidth)") == 96
        page.locator("#heat").evaluate("image => image.decode()")
        row, column = (HOT_ZYX[1] + 0.5) / 96, (HOT_ZYX[2] + 0.5) / 96
        shown = pixels(scan)
        (tmp_path / "slices.png").write_bytes(viewer.screenshot())
        assert redness(shown, row, column) > 60
        assert abs(redness(shown, row, 1 - column)) < 8  # the other lung
        assert page.locator(".box").is_visible()
        page.keyboard.press("o")
        assert abs(redness(pixels(scan), row, column)) < 8
        page.keyboard.press("o")
        page.keyboard.press("ArrowUp")
        page.get_by_text(f"slice {HOT_ZYX[0] + 1} of 19").wait_for()
        page.keyboard.press("m")
        assert "/mediastinum/" in scan.get_attribute("src")

        page.get_by_role("button", name="Three planes").click()
        page.locator("#viewer[data-planes]").wait_for()
        page.get_by_role("button", name="1", exact=True).click()
        planes = pixels(page.locator("#planes"))
        (tmp_path / "planes.png").write_bytes(viewer.screenshot())
        red = planes[..., 0] - planes[..., 2] > 60
        crosshair = np.isclose(planes[..., 1] / np.maximum(planes[..., 0], 1), 0.8, atol=0.1)
        assert (red & ~crosshair).sum() > 100  # the map, in the planes too

        page.get_by_label("not tampered").check()
        page.get_by_label("4", exact=True).check()
        page.get_by_label("Note").fill("Looks like a vessel.")
        page.get_by_role("button", name="Save verdict").click()
        page.get_by_text("Looks like a vessel.").wait_for()
        page.get_by_role("link", name="Audit").click()
        page.get_by_text("Chain verified").wait_for()
        entry = page.locator("tr", has_text="not tampered")
        assert "ada" in entry.inner_text() and "reading" in entry.inner_text()
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert complaints == []


def test_a_phone_shows_the_same_without_scrolling_sideways(node: Node, tmp_path: Path) -> None:
    with served(node) as address, browser() as chromium:
        page = chromium.new_page(viewport=PHONE, has_touch=True, is_mobile=True)
        page.set_default_timeout(120_000)
        log_in(page, address, "ada")
        for path in ("/", "/cases/1", "/cases/2", "/admin/users", "/admin/audit", "/admin/retention", "/studies"):
            page.goto(f"{address}{path}")
            wide = page.evaluate("() => document.documentElement.scrollWidth")
            assert wide <= PHONE["width"], path
        page.goto(f"{address}/cases/1")
        picture = page.locator("#scan").bounding_box()
        assert picture is not None and picture["width"] > 300
        assert page.get_by_text("Evidence of tampering in 1 region").is_visible()

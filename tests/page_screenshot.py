"""The README's picture of the page: `python tests/page_screenshot.py MODEL PICTURES docs/page.png`."""

import argparse
import tempfile
from io import BytesIO
from pathlib import Path

from page_visit import chromium, running_server
from PIL import Image
from playwright.sync_api import expect

APP = Path(__file__).parents[1] / "scripts" / "app.py"


def main(argv: list[str] | None = None) -> None:
    """Serve the page, let a visitor choose a picture and show its salient points, and save what the visitor sees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, help="folder of examples")
    parser.add_argument("output", type=Path)
    parser.add_argument("--example", type=int, default=1, help="which of the pictures is chosen, from 1")
    parser.add_argument("--threshold", default="0.3")
    args = parser.parse_args(argv)
    options = ["--examples", str(args.pictures.absolute()), "--threshold", args.threshold]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server([str(APP), str(args.model.absolute()), *options], Path(folder)) as server,
        chromium() as browser,
    ):
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(server.url)
        page.locator(".gallery-item").nth(args.example - 1).click()
        expect(page.locator("#caption")).to_contain_text("detection")
        page.get_by_label("Show salient points").check()
        page.wait_for_timeout(2000)  # drawn anew, and nothing fades in any more
        picture = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(args.output, optimize=True)


if __name__ == "__main__":
    main()

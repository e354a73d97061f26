"""What axe-core objects to on a page."""

from axe_playwright_python.async_playwright import Axe


async def violations(page):
    """Return what axe-core finds on a page, light and dark, in a narrow and in a wide window: rules and elements."""
    found = []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in (400, 1400):
            await page.set_viewport_size({"width": width, "height": 900})
            response = (await Axe().run(page)).response
            found += [
                f"{rule['id']} ({scheme}, {width} pixels): {node['target']} {node['html']} {node['failureSummary']}"
                for rule in response["violations"]
                for node in rule["nodes"]
            ]
    await page.emulate_media(color_scheme="null", reduced_motion="null")
    return found

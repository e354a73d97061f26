"""The colours of a page, and their contrast."""

import re


async def color(page, selector, name):
    value = await page.evaluate(f"getComputedStyle(document.querySelector({selector!r})).getPropertyValue({name!r})")
    return [int(number) for number in re.findall(r"\d+", value)[:3]]


def luminance(rgb):
    """Relative luminance. Source: WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)

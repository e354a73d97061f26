"""The aiohttp integration. Only this package and ``testing`` import aiohttp."""

"""The aiohttp integration. Only this package, ``observe`` and ``testing`` import aiohttp."""

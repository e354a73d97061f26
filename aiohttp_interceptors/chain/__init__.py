"""The machine: interceptors, their context, and the loop. Knows no HTTP and no aiohttp."""

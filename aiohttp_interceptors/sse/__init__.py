"""The wire: events, their bytes, and the channel that carries them. Knows no aiohttp."""

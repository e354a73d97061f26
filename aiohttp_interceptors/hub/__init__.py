"""Topics, the history of their records, and delivery to subscribers. Imports neither aiohttp nor a network client."""

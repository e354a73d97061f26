"""The fan-out: topics, their history, and who hears of what is published. Knows no network and no HTTP."""

"""A typed client of the gateway's HTTP interface; what the command line uses. Imports core and aiohttp only."""

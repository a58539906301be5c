"""One module a tab: components, and the handlers that join them to the core."""

"""One HTML file that needs nothing else: no network, no script."""

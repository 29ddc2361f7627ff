"""From a rendered request to its answers."""

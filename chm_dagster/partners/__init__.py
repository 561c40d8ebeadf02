"""The outside world: what partners' APIs say, and how to ask them."""

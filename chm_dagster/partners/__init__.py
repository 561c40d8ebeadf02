"""The outside world: partners' APIs and how to read them."""

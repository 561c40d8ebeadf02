"""The board: health as web pages, made on the server from the same queries and words as the CLI's tables."""

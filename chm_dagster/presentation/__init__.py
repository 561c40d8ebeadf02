"""Presentation: columns and words for each question, rendered for terminals, Markdown and HTML."""

"""Client reports as people get them: a page in HTML and PDF, tables in CSV and JSON, and an email."""

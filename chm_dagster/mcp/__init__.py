"""The Model Context Protocol server: what an assistant may ask CHM. It only reads."""

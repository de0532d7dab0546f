"""The commands beside `serve`: tail and demo."""

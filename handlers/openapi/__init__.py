"""The OpenAPI document: its content, its examples and its interactive page."""

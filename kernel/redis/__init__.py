"""The transport on Redis: numbers, keeps and announces events in one script call."""

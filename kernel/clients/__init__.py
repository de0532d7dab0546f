"""This replica's clients: fan-out, catch-up, replay, subscriptions and acks."""

"""The commands `tail` and `demo`: clients of the service that use only its public protocol."""

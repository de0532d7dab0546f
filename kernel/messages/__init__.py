"""What may be said: the data of each message family, control messages, and how bodies are read and checked."""

"""The model: exactly the files that travel with it to the Hub."""

"""The model: exactly the files that are uploaded with it to the Hub."""

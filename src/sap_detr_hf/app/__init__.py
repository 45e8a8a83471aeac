"""The page in the browser, also as a Hugging Face Space."""

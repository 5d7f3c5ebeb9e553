"""The client of a judge: a language model behind OpenAI-compatible servers that compares an answer with the gold."""

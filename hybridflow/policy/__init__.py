"""Small policies to start from: the tiny tokenizer, and seeded weights in the Hugging Face format."""

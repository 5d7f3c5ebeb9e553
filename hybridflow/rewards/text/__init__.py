"""What words of an answer say: characters, markup, wording, asides, denials."""

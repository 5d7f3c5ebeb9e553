"""Words of an answer: characters, markup, lexicon, sentences, asides."""

"""Commands of `hybridflow`, from options to what they write: train, sft, generate, score, logprobs, export."""

"""Commands of `hybridflow`, from options to what they write: training, supervised training, scoring, generation, export."""

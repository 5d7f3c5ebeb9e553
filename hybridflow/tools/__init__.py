"""Commands on a policy that need train workers but no rollout: `hybridflow logprobs`, `export` and `sft`."""

"""Parts of the user's own: plain functions, named "module:function" where a registered part has its name.

    key                  is given, by the names of its parameters                        gives
    algorithm.loss       `logprobs`, `rows`, `tokens` and every column that it names     a loss per token [N]
    algorithm.metrics    the same, without a graph                                       a value per token [N]
    algorithm.advantage  `groups`, `rewards`                                             [G] numbers per group
    algorithm.filter     `group`, `rewards`                                              why it is left out, or None

A further parameter has a default, or a value in `[algorithm.parameters]`. Functions are looked for as verifiers are
(`hybridflow.find_function`), by the driver and by each train worker, which get their names alone.
"""

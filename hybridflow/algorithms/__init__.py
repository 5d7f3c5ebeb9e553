"""The algorithm as exchangeable parts: group filters, advantages, terms of the loss, their aggregation, measures.

Pure; what runs on tensors needs torch, the rest is plain Python. To add a part, write it in a module of its own and
name it in one line of `registry.py`; `spec.py` says which parts a configuration asks for. No other file knows a part by
name.

    kind         gets                                gives                                       protocol in
    filter       a group                             why it is left out, or None                 algorithm.py
    advantage    the kept groups, their rewards      one number per completion                   algorithm.py
    mask         a training row                      its loss mask                               algorithm.py
    term         the counted tokens of a micro-batch one loss per token; terms add up            objective.py
    correction   the counted tokens                  a weight of each one's policy loss          objective.py
    aggregation  losses of the tokens                their sum, and its share of the denominator objective.py
    measure      the counted tokens                  metrics, one value per token                objective.py

The driver builds an `Algorithm` and sends its `ObjectiveSpec`, plain data, to the train workers, which build the
objective from it.
"""

"""Numbers, quantities, units, ranges, dates and times as people and models write them."""

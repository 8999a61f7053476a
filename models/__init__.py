"""The mathematics, in plain torch: one file a family, plus attention, the width rule and the cost ledger."""

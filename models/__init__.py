"""The mathematics, in plain torch: one file per family, plus attention, the width rule and the cost ledger."""

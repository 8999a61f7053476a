"""The ledger of cost: parameters, FLOPs and bytes by formula, and the counters they are held against."""

"""What families are built of: attention, recurrences, output layers, the width rule, activation checkpointing."""

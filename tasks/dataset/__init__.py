"""From sources to datasets: the tasks that make them, and how later tasks open them."""

"""What every task shares: its identity, the artifact store, how a graph of tasks runs, and the record it leaves."""

"""Records -> batches of this process: who reads what, in which order, from which position on."""

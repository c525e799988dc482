"""Files on a server, whatever the network does."""

"""Files of a stream, read forwards from any known place."""

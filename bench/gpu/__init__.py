"""Cold starts on a GPU: ours and its rivals from one object store on loopback, every process timed from exec to first token."""

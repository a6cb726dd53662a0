"""Speed and memory, measured: ours beside a peer, in one run, taking turns."""

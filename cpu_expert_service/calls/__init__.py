"""What callers reach: the gRPC server and its socket, health, and the threads that each kind of call may take."""

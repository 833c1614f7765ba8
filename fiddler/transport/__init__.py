"""How the services and their clients reach each other: addresses, sockets, bounds on calls, /metrics over HTTP."""

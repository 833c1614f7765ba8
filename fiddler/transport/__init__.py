"""How the services and their clients reach each other: addresses, the directories of sockets, /metrics over HTTP."""

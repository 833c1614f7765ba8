"""Who may call: certificates and bearer tokens, as either end of a connection reads them."""

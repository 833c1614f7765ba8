"""What both services do with calls: compare handshakes, refuse undecodable messages, bound health watches."""

"""Small fleets checked exhaustively: the real decisions and the real writes over an etcd that is a value."""
